"""dalle-pytorch 1.6.6, computed by foveal."""
