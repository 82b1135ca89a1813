"""h-transformer-1d 0.1.9, computed by foveal."""
