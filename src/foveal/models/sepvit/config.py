"""Configuration and named sizes of SepVisionTransformer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from foveal.layers.relative_position import Size
from foveal.models.config import ModelConfig, check_entries
from foveal.models.staged import StagedConfig
from foveal.patterns.sizes import pair


@dataclass(frozen=True, kw_only=True)
class SepVisionTransformerConfig(StagedConfig):
    """Keywords of SepVisionTransformer; lists have an entry for each stage.

    Attributes:
        depths: blocks.
        dims: features.
        heads: attention heads.
        window_sizes: windows of the blocks of a stage, cycled; (7, 14) alternates plain and
            grouped attention.
        strides: of the patch embeddings.
        stem_kernel: width of the first patches; None = 2 * stride - 1.
        stem_dims: features of 3 x 3 convolutions before the patches, the first of stride 2. Small
            data are learned faster with a few (Xiao et al., "Early Convolutions Help Transformers
            See Better", 2021); the authors have none.
        mlp_ratio: hidden features of the feed-forward layers, as a multiple.
        image_size: (height, width), or an int, at which the model has a window token for each
            window, and global attention where one window covers the map. Other sizes of images
            work as well: the tokens are then interpolated.
        window_tokens: "learned", or "zero" for none.
        qkv_bias: biases in the projections to queries, keys and values.
        proj_drop_rate, attn_drop_rate: dropout of features and of attention weights.
    """

    PER_STAGE = (*StagedConfig.PER_STAGE, "window_sizes")

    depths: tuple[int, ...] = (1, 2, 6, 2)
    dims: tuple[int, ...] = (32, 64, 128, 256)
    heads: tuple[int, ...] = (1, 2, 4, 8)
    window_sizes: tuple[tuple[int, ...], ...] = ((7,), (7, 14), (7, 14), (7,))
    strides: tuple[int, ...] = (4, 2, 2, 2)
    stem_kernel: int | None = None
    stem_dims: tuple[int, ...] = ()
    mlp_ratio: float = 4.0
    image_size: Size = 224
    window_tokens: Literal["learned", "zero"] = "learned"
    qkv_bias: bool = True
    proj_drop_rate: float = 0.0
    attn_drop_rate: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_stages(self, len(self.depths), ("dims", "heads", "window_sizes", "strides"))
        check_entries(1, dims=self.dims, heads=self.heads, strides=self.strides)
        check_entries(1, stem_dims=self.stem_dims)
        check_entries(0, depths=self.depths)
        for stage, windows in enumerate(self.window_sizes):
            check_entries(1, **{f"window_sizes[{stage}]": windows or (0,)})
        pair(self.image_size, "image_size")

    @property
    def stem_reduction(self) -> int:
        return 2 if self.stem_dims else 1

    @property
    def first_conv(self) -> str:
        return "stem.0" if self.stem_dims else "stages.0.embed.conv"

    def grids(self) -> list[tuple[int, int]]:
        """(height, width) of the map of each stage at `image_size`."""
        sizes, size = [], pair(self.image_size, "image_size")
        if self.stem_dims:
            size = (-(-size[0] // 2), -(-size[1] // 2))
        for stride in self.strides:
            size = (-(-size[0] // stride), -(-size[1] // stride))
            sizes.append(size)
        return sizes


def check_stages(config: ModelConfig, stages: int, names: tuple[str, ...]) -> None:
    """Raise ValueError unless each keyword is an int or has an entry for each stage."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) and len(value) != stages:
            raise ValueError(
                f"{name} must have an entry for each of the {stages} stages, got {name}={value}."
            )


def _wide(dim: int, heads: int, depth: int) -> dict[str, Any]:
    return {
        "dims": (dim, 2 * dim, 4 * dim, 8 * dim),
        "heads": (heads, 2 * heads, 4 * heads, 8 * heads),
        "depths": (1, 2, depth, 2),
    }


SIZES: dict[str, dict[str, Any]] = {
    "sepvit_lite": _wide(32, 1, 6),
    "sepvit_tiny": _wide(96, 3, 6),
    "sepvit_small": _wide(96, 3, 14),
    "sepvit_base": _wide(128, 4, 14),
    # for images of 32 x 32 pixels: maps of 16, 8 and 4, in windows of 4 and 8
    "sepvit_cifar": {
        "dims": (64, 128, 256),
        "heads": (2, 4, 8),
        "depths": (1, 2, 2),
        "window_sizes": ((4,), (4, 8), (4,)),
        "strides": (2, 2, 2),
        "image_size": 32,
        "mlp_ratio": 2.0,
        "num_classes": 10,
    },
}
