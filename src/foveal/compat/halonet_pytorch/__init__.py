"""halonet-pytorch 0.0.5, computed by foveal."""
