"""Configurations and named sizes of the two SepViT networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from foveal.layers.checks import check_dropout, check_sizes
from foveal.layers.relative_position import Size
from foveal.models.config import ModelConfig, check_entries, check_range
from foveal.models.image import ImageConfig
from foveal.patterns.sizes import pair


@dataclass(frozen=True, kw_only=True)
class SepVisionTransformerConfig(ImageConfig):
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

    def grids(self) -> list[tuple[int, int]]:
        """(height, width) of the map of each stage at `image_size`."""
        sizes, size = [], pair(self.image_size, "image_size")
        if self.stem_dims:
            size = (-(-size[0] // 2), -(-size[1] // 2))
        for stride in self.strides:
            size = (-(-size[0] // stride), -(-size[1] // stride))
            sizes.append(size)
        return sizes


@dataclass(frozen=True, kw_only=True)
class SepViTConfig(ModelConfig):
    """Keywords of SepViT, those of vit-pytorch and some more.

    Attributes:
        num_classes: outputs of the classifier; 0 for none.
        dim: features of the first stage; each later stage doubles them.
        depth: blocks of each stage.
        heads: attention heads, for all stages or each.
        window_size: side of a window, for all stages or each.
        dim_head: features of a head.
        ff_mult: hidden features of the feed-forward layers, as a multiple.
        channels: of an image.
        dropout: on attention weights and features.
        drop_rate, drop_path_rate, features_only, out_indices: as in ImageConfig.
    """

    num_classes: int = 1000
    dim: int = 32
    depth: tuple[int, ...] = (1, 2, 6, 2)
    heads: int | tuple[int, ...] = (1, 2, 4, 8)
    window_size: int | tuple[int, ...] = 7
    dim_head: int = 32
    ff_mult: float = 4
    channels: int = 3
    dropout: float = 0.0
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    features_only: bool = False
    out_indices: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(dim=self.dim, dim_head=self.dim_head, channels=self.channels)
        check_dropout(self.dropout)
        check_dropout(self.drop_rate)
        check_dropout(self.drop_path_rate)
        check_range(0, num_classes=self.num_classes)
        check_stages(self, len(self.depth), ("heads", "window_size"))
        check_entries(1, heads=self.per_stage("heads"), window_size=self.per_stage("window_size"))
        check_entries(0, depth=self.depth)

    @property
    def in_chans(self) -> int:
        """The same as channels."""
        return self.channels

    def per_stage(self, name: str) -> tuple[int, ...]:
        """The values of a keyword, one for each stage."""
        value = getattr(self, name)
        return (value,) * len(self.depth) if isinstance(value, int) else value


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
