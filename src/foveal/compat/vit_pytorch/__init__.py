"""The SepViT of vit-pytorch 1.26.11, computed by foveal."""
