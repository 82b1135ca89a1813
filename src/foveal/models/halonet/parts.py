"""What the blocks of a HaloNet are made of, by its configuration."""

from __future__ import annotations

import math

from torch import Tensor, nn

from foveal.layers.halo import HaloAttention
from foveal.layers.map_attention import MapAttention
from foveal.layers.rows import HERE, Rows
from foveal.models.halonet.config import HaloNetConfig, Mixer, to_eights
from foveal.patterns.sizes import pair


def act(c: HaloNetConfig) -> nn.Module:
    """The activation of the network."""
    return nn.SiLU() if c.act == "silu" else nn.ReLU()


def stem(c: HaloNetConfig) -> nn.Sequential:
    """Convolutions, each normalised and activated, and perhaps a pooling.

    (batch, in_chans, height, width) -> (batch, dim, height / reduction, width / reduction).
    """
    dims, layers, dim_in = c.stem_dims or (c.stem_dim,), [], c.in_chans
    strides = [2] + [1] * (len(dims) - 1) if c.stem_dims else [c.stem_stride]
    if len(dims) > 1:
        strides[-1] = c.stem_stride // 2
    for dim, stride in zip(dims, strides, strict=True):
        conv = nn.Conv2d(dim_in, dim, c.stem_kernel, stride, c.stem_kernel // 2, bias=False)
        layers += [conv, nn.BatchNorm2d(dim), act(c)]
        dim_in = dim
    return nn.Sequential(*layers, nn.MaxPool2d(3, 2, 1) if c.stem_pool else nn.Identity())


def convolution(c: HaloNetConfig, dim_in: int, dim_out: int, stride: int) -> nn.Conv2d:
    """The 3 x 3 convolution of a hybrid's block, instead of attention."""
    groups = dim_in // c.group_width if c.group_width else 1
    if c.group_width and (not groups or dim_in % c.group_width or dim_out % groups):
        raise ValueError(
            f"group_width must divide the channels of every 3 x 3 convolution, got "
            f"group_width={c.group_width} for {dim_in} to {dim_out} channels."
        )
    return nn.Conv2d(dim_in, dim_out, 3, stride, 1, groups=groups, bias=False)


def attention(
    c: HaloNetConfig,
    kind: Mixer,
    stage: int,
    dim: int,
    dim_out: int,
    stride: int,
    reduction: int,
) -> nn.Module:
    """Attention of a block.

    Args:
        c: configuration of the network.
        kind: "halo" or "map".
        stage: index of the stage.
        dim, dim_out: channels before and after.
        stride: pixels from one that is kept to the next.
        reduction: pixels of the image for each pixel of the map that comes in.
    """
    heads, dim_qk = c.heads[stage], c.dim_qk(stage, dim)
    value_ratio = dim_out / heads / dim_qk
    if kind == "map":
        sides = [-(-side // reduction) for side in pair(c.image_size, "image_size")]
        layer: nn.Module = MapAttention(
            dim,
            (sides[0], sides[1]),
            dim_qk,
            heads,
            value_ratio=value_ratio,
            scale_rel_pos=c.scale_rel_pos,
            dropout=c.attn_drop_rate,
        )
        return averaged(layer) if stride > 1 else layer
    strided = all(side % stride == 0 for side in pair(c.block_size, "block_size"))
    layer = HaloAttention(
        dim,
        c.block_size,
        c.halo_size,
        dim_head=dim_qk,
        heads=heads,
        stride=stride if strided else 1,
        padding=c.padding,
        rel_pos=c.rel_pos,
        scale_rel_pos=c.scale_rel_pos,
        true_offsets=c.true_offsets,
        dropout=c.attn_drop_rate,
        value_ratio=value_ratio,
        out_proj=False,
    )
    return layer if strided else averaged(layer)


def averaged(layer: nn.Module) -> nn.Sequential:
    """A layer, and means of two by two pixels; at odd sizes the last ones are of fewer."""
    return nn.Sequential(layer, nn.AvgPool2d(2, 2, ceil_mode=True))


def channel_attention(c: HaloNetConfig, dim: int) -> nn.Module:
    """What weights the channels of a map by what is in it, or nothing."""
    if c.channel_attention is None:
        return nn.Identity()
    if c.channel_attention == "eca":
        return EfficientChannelAttention(dim)
    return SqueezeExcite(dim, to_eights(dim * c.se_ratio) if c.se_ratio < 1 else dim)


class SqueezeExcite(nn.Module):
    """Channels are weighted by two layers of their means (Hu et al. 2018).

    Args:
        dim: channels.
        hidden: features between the layers.
    """

    rows: Rows = HERE

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = (
            nn.Conv2d(dim, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, dim, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, dim, height, width) -> same."""
        return x * self.fc2(self.act(self.fc1(self.rows.mean(x)[..., None, None]))).sigmoid()


class EfficientChannelAttention(nn.Module):
    """Channels are weighted by a convolution over their means (Wang et al. 2020).

    Args:
        dim: channels; they say how wide the convolution is.
    """

    rows: Rows = HERE

    def __init__(self, dim: int) -> None:
        super().__init__()
        width = int(abs(math.log2(dim) + 1) / 2)
        width = max(3, width if width % 2 else width + 1)
        self.conv = nn.Conv1d(1, 1, width, padding=width // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, dim, height, width) -> same."""
        weight = self.conv(self.rows.mean(x)[:, None]).sigmoid()
        return x * weight.transpose(1, 2)[..., None]
