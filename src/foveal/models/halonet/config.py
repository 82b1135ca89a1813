"""Configuration and named sizes of HaloNet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from foveal.layers.checks import check_sizes
from foveal.layers.halo import Padding
from foveal.layers.relative_position import RelPosMode, Size
from foveal.models.config import check_entries
from foveal.models.staged import StagedConfig
from foveal.patterns.sizes import pair

Mixer = Literal["halo", "conv", "map"]


@dataclass(frozen=True, kw_only=True)
class HaloNetConfig(StagedConfig):
    """Keywords of HaloNet; lists have an entry for each stage.

    Attributes:
        depths: blocks.
        dims: width of the bottlenecks, which is that of queries and keys.
        heads: attention heads.
        strides: of the first block of a stage.
        block_size, halo_size: (height, width) of a block and of its border, or ints.
        value_ratio: width of the values, as a multiple of the bottleneck (r_v of the paper).
        bottleneck_ratio: width of a block's result, likewise (r_b); one for all stages or each.
        final_dim: features of a last 1 x 1 convolution (d_f); None for none.
        stem_dim, stem_kernel, stem_stride: of the first convolution.
        stem_pool: a max pooling of stride 2 after it.
        conv_stages: stages whose attention is a 3 x 3 convolution instead (the hybrids of the
            paper's table 3).
        rel_pos, padding, scale_rel_pos, true_offsets: as in HaloAttention.
        attn_drop_rate: dropout on the attention weights.
        mixers: for each stage what its blocks mix pixels by, in turns: "halo", "conv" (3 x 3), or
            "map" (MapAttention); () for halo attention but in `conv_stages`.
        dim_head: features of a head of queries and keys; None for what `dims` gives.
        qk_ratio: width of queries and keys where dim_head is None, as a multiple of the values',
            rounded to 8 over all heads.
        stem_dims: convolutions in place of the one of stem_dim; the first has stride 2, and with
            stem_stride=4 the last one, too.
        act: activation.
        channel_attention: "se" or "eca" after the convolutions (Hu et al. 2018; Wang et al. 2020).
        se_ratio: hidden features of "se", as a multiple, rounded to 8.
        group_width: channels of a group of the 3 x 3 convolutions; 0 for one group.
        inverted: blocks are this many times as wide as their input, whatever `dims`, end without
            an activation, and have no shortcut where they change the map (RegNetZ).
        image_size: (height, width), or an int, of images in training, for the tables of "map".
    """

    PER_STAGE = (*StagedConfig.PER_STAGE, "mixers")

    depths: tuple[int, ...] = (3, 3, 7, 3)
    dims: tuple[int, ...] = (64, 128, 256, 512)
    heads: tuple[int, ...] = (4, 8, 8, 8)
    strides: tuple[int, ...] = (1, 2, 2, 2)
    block_size: Size = 8
    halo_size: Size = 3
    value_ratio: float = 1.0
    bottleneck_ratio: float | tuple[float, ...] = 0.5
    final_dim: int | None = None
    stem_dim: int = 64
    stem_kernel: int = 7
    stem_stride: int = 2
    stem_pool: bool = True
    conv_stages: tuple[int, ...] = ()
    rel_pos: RelPosMode = "split"
    padding: Padding = "mask"
    scale_rel_pos: bool = True
    true_offsets: bool = True
    attn_drop_rate: float = 0.0
    mixers: tuple[tuple[Mixer, ...], ...] = ()
    dim_head: int | None = None
    qk_ratio: float = 1.0
    stem_dims: tuple[int, ...] = ()
    act: Literal["silu", "relu"] = "silu"
    channel_attention: Literal["se", "eca"] | None = None
    se_ratio: float = 1 / 16
    group_width: int = 0
    inverted: float | None = None
    image_size: Size = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_stages()
        check_entries(1, dims=self.dims, heads=self.heads, strides=self.strides)
        check_entries(1, stem_dims=self.stem_dims)
        pair(self.image_size, "image_size")
        check_entries(0, depths=self.depths)
        given = {"final_dim": self.final_dim, "dim_head": self.dim_head}
        check_sizes(**{name: size for name, size in given.items() if size is not None})
        self._check_blocks()
        check_sizes(
            stem_dim=self.stem_dim, stem_kernel=self.stem_kernel, stem_stride=self.stem_stride
        )
        for dim, heads in zip(self.dims, self.heads, strict=True):
            if dim % heads:
                raise ValueError(
                    f"heads must divide dims stage by stage, got dims={self.dims} and "
                    f"heads={self.heads}."
                )

    def _check_stages(self) -> None:
        """Raise ValueError unless all that is said of stages is said of each."""
        stages = len(self.depths)
        for name in ("dims", "heads", "strides"):
            if len(getattr(self, name)) != stages:
                raise ValueError(
                    f"{name} must have an entry for each of the {stages} stages of "
                    f"depths={self.depths}, got {name}={getattr(self, name)}."
                )
        if self.mixers and (len(self.mixers) != stages or not all(self.mixers)):
            raise ValueError(
                f"mixers must have an entry for each of the {stages} stages, and none empty, got "
                f"mixers={self.mixers}."
            )
        if isinstance(self.bottleneck_ratio, tuple) and len(self.bottleneck_ratio) != stages:
            raise ValueError(
                f"bottleneck_ratio must be a number or {stages} of them, got "
                f"{self.bottleneck_ratio}."
            )

    def _check_blocks(self) -> None:
        """Raise ValueError unless the stem reduces as it says, and blocks have a width."""
        strides = (2, 4) if len(self.stem_dims) > 1 else (2,)
        if self.stem_dims and self.stem_stride not in strides:
            raise ValueError(
                f"stem_stride must be {' or '.join(map(str, strides))} with "
                f"stem_dims={self.stem_dims}, got stem_stride={self.stem_stride}."
            )
        if self.inverted is not None and not self.inverted > 0:
            raise ValueError(f"inverted must be more than 0, got inverted={self.inverted}.")

    def mixer(self, stage: int, block: int) -> Mixer:
        """What a block mixes pixels by."""
        if not self.mixers:
            return "conv" if stage in self.conv_stages else "halo"
        return self.mixers[stage][block % len(self.mixers[stage])]

    def dim_out(self, stage: int) -> int:
        """Channels of a stage."""
        ratio = self.bottleneck_ratio
        return round(self.dims[stage] * (ratio[stage] if isinstance(ratio, tuple) else ratio))

    def dim_qk(self, stage: int, width: int) -> int:
        """Features of a head of queries and keys in a block of a width."""
        if self.dim_head is not None:
            return self.dim_head
        width = width if self.qk_ratio == 1 else to_eights(width * self.qk_ratio)
        return width // self.heads[stage]

    def first(self, count: int) -> dict[str, Any]:
        ratio = self.bottleneck_ratio
        ratio = ratio[:count] if isinstance(ratio, tuple) else ratio
        return {**super().first(count), "bottleneck_ratio": ratio, "final_dim": None}

    @property
    def stem_reduction(self) -> int:
        return self.stem_stride * (2 if self.stem_pool else 1)


def to_eights(width: float) -> int:
    """The nearest multiple of 8, or the next one where it would be less than 0.9 of it."""
    near = max(8, int(width + 4) // 8 * 8)
    return near + 8 if near < 0.9 * width else near


def _size(
    block: int, halo: int, value: float, bottleneck: float, depth: int, final: int | None = None
) -> dict[str, Any]:
    """A row of table A2 of the paper."""
    return {
        "block_size": block,
        "halo_size": halo,
        "value_ratio": value,
        "bottleneck_ratio": bottleneck,
        "depths": (3, 3, depth, 3),
        "final_dim": final,
    }


# Image sizes of the paper: 256, 256, 256, 320, 384, 448, 512, 600. It prints 12.3 M parameters for
# H3, which d_f = 1280 would give; its table says 1024, which we follow (11.8 M).
SIZES: dict[str, dict[str, Any]] = {
    "halonet_h0": _size(8, 3, 1.0, 0.5, 7),
    "halonet_h1": _size(8, 3, 1.0, 1.0, 10),
    "halonet_h2": _size(8, 3, 1.0, 1.25, 11),
    "halonet_h3": _size(10, 3, 1.0, 1.5, 12, 1024),
    "halonet_h4": _size(12, 2, 1.0, 3.0, 12, 1280),
    "halonet_h5": _size(14, 2, 2.5, 2.0, 23, 1536),
    "halonet_h6": _size(8, 4, 3.0, 2.75, 24, 1536),
    "halonet_h7": _size(10, 3, 4.0, 3.5, 26, 2048),
    "halonet50": {
        **_size(8, 3, 1.0, 4.0, 6),
        "depths": (3, 4, 6, 3),
        "heads": (4, 8, 16, 32),
    },
    # for images of 32 x 32 pixels: a stem without pooling, three stages, whole maps in few blocks
    "halonet_cifar": {
        "depths": (2, 2, 2),
        "dims": (32, 64, 128),
        "heads": (2, 4, 8),
        "strides": (1, 2, 2),
        "block_size": 4,
        "halo_size": 2,
        "bottleneck_ratio": 2.0,
        "stem_dim": 32,
        "stem_kernel": 3,
        "stem_stride": 1,
        "stem_pool": False,
        "num_classes": 10,
    },
}
