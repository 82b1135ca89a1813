"""The SepViT of vit-pytorch 1.26.11, computed by foveal."""

from foveal.compat.vit_pytorch import sep_vit

__all__ = ["sep_vit"]
