"""hourglass-transformer-pytorch 0.0.6, computed by foveal."""
