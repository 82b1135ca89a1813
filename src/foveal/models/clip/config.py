"""Configuration of CLIP."""

from __future__ import annotations

from dataclasses import dataclass

from foveal.layers.checks import check_dropout, check_sizes
from foveal.models.config import ModelConfig
from foveal.models.vae.config import read_image_size


@dataclass(frozen=True, kw_only=True)
class CLIPConfig(ModelConfig):
    """Keywords of CLIP.

    Attributes:
        dim_text, dim_image, dim_latent: features of the text tower, of the picture tower, and of
            the space in which they meet.
        num_text_tokens: size of the text vocabulary; 0 is padding.
        text_enc_depth, text_heads: layers and heads (of 64 features) of the text tower.
        text_seq_len: longest text.
        num_visual_tokens: accepted for compatibility; pictures are read as pixels.
        visual_enc_depth, visual_heads: as for the text.
        visual_image_size: pixels, an int for a square or (height, width).
        visual_patch_size: pixels each way of a patch; what does not divide is padded.
        channels: of the pictures.
        dropout: in both towers.
        mask_padding: the text tower leaves padding out; False reads it like a word, unless
            text_mask says otherwise, as dalle-pytorch does.
    """

    dim_text: int = 512
    dim_image: int = 512
    dim_latent: int = 512
    num_text_tokens: int = 10_000
    text_enc_depth: int = 6
    text_seq_len: int = 256
    text_heads: int = 8
    num_visual_tokens: int = 512
    visual_enc_depth: int = 6
    visual_heads: int = 8
    visual_image_size: int | tuple[int, int] = 256
    visual_patch_size: int = 32
    channels: int = 3
    dropout: float = 0.0
    mask_padding: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = set(self.names()) - {"visual_image_size", "dropout", "mask_padding"}
        check_sizes(**{name: getattr(self, name) for name in sorted(sizes)})
        check_dropout(self.dropout)
        size = read_image_size(self.visual_image_size, "visual_image_size")
        object.__setattr__(self, "visual_image_size", size)

    @property
    def pixels(self) -> tuple[int, int]:
        """(height, width) of a picture."""
        size = self.visual_image_size
        return (size, size) if isinstance(size, int) else size

    @property
    def grid(self) -> tuple[int, int]:
        """(height, width) of a picture in patches."""
        height, width = (-(-side // self.visual_patch_size) for side in self.pixels)
        return height, width
