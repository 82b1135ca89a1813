"""HaloAttention: blocked local attention of a feature map."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from foveal.common.arguments import checked
from foveal.common.checks import check_dense
from foveal.layers.checks import check_dropout, check_sizes
from foveal.layers.linear import is_plain, linear
from foveal.layers.relative_position import RelPosEmb, RelPosMode, Size
from foveal.layers.windowed import windowed_attention
from foveal.layers.windows import fold, known
from foveal.ops import WindowBias, attend
from foveal.ops.lowered import is_lowering
from foveal.ops.rows_without_keys import logsumexp_rows
from foveal.patterns import Halo
from foveal.patterns.sizes import pair

Padding = Literal["mask", "attend", "inverted"]
PADDINGS = ("mask", "attend", "inverted")
_LARGE_MAP = 1 << 21  # bytes


class HaloAttention(nn.Module):
    """Every block of pixels attends to itself and a border of `halo_size` pixels around it.

    Vaswani et al., "Scaling Local Self-Attention for Parameter Efficient Visual Backbones"
    (2021). Keys and values are projected once per pixel. Parameters have the names and shapes of
    halonet-pytorch, whose layer this replaces.

    Differs from the paper in: the logits are scaled by dim_head ** -0.5; an output projection
    (`out_proj=False` leaves it out); the whole query meets both position tables
    (`rel_pos="split"` halves it); pixels beyond the map are no keys (`padding="attend"`).

    Args:
        dim: features of the map.
        block_size: (height, width) of a block, or an int; need not divide the map.
        halo_size: (height, width) of the border, or an int; 0 for plain blocks.
        dim_head: features of a head.
        heads: number of heads.
        dim_out: features of the result; dim by default. Without an output projection they are
            `heads * dim_head * value_ratio` and cannot be chosen.
        stride: 2 takes queries at every second pixel of every second row and halves the map;
            their window stays. Must divide the block.
        padding: what lies beyond the map. "mask": nothing. "attend": keys and values of zero
            that take part in the softmax (timm, and the paper as far as it says). "inverted":
            the fault of halonet-pytorch 0.0.4, which masks the map and attends to its outside;
            for its checkpoints only.
        rel_pos: "sum" or "split" (see RelPosEmb), or None for no relative positions.
        scale_rel_pos: scale position logits as the content logits are.
        true_offsets: with a stride, positions count pixels; False counts queries, as timm does.
        dropout: on the attention weights.
        qk_ratio, value_ratio: width of queries and keys, and of values, as a multiple of
            `dim_head`.
        out_proj: project the heads back to dim_out.
        qkv_bias: biases in the projections to queries, keys and values.

    Raises:
        ValueError: sizes that are not positive or do not fit, an unknown option.

    Example:
        >>> import torch
        >>> from foveal.layers import HaloAttention
        >>> layer = HaloAttention(dim=32, block_size=8, halo_size=4, dim_head=16, heads=2)
        >>> layer(torch.randn(1, 32, 20, 37)).shape
        torch.Size([1, 32, 20, 37])
    """

    @checked
    def __init__(
        self,
        dim: int,
        block_size: Size,
        halo_size: Size,
        dim_head: int = 64,
        heads: int = 8,
        *,
        dim_out: int | None = None,
        stride: int = 1,
        padding: Padding = "mask",
        rel_pos: RelPosMode | None = "sum",
        scale_rel_pos: bool = True,
        true_offsets: bool = True,
        dropout: float = 0.0,
        qk_ratio: float = 1.0,
        value_ratio: float = 1.0,
        out_proj: bool = True,
        qkv_bias: bool = False,
    ) -> None:
        super().__init__()
        check_sizes(dim=dim, dim_head=dim_head, heads=heads, stride=stride)
        check_dropout(dropout)
        self.dim, self.heads, self.stride = dim, heads, stride
        self.block_size = pair(block_size, "block_size")
        self.halo_size = pair(halo_size, "halo_size", least=0)
        if any(side % stride for side in self.block_size):
            raise ValueError(f"stride must divide the block, got {stride=} and {block_size=}.")
        if padding not in PADDINGS:
            raise ValueError(f"padding must be one of {', '.join(PADDINGS)}, got {padding=}.")
        self.padding, self.dropout = padding, dropout
        self.scale_rel_pos, self.true_offsets = scale_rel_pos, true_offsets
        self.dim_qk = _width("qk_ratio", qk_ratio, dim_head)
        self.dim_v = _width("value_ratio", value_ratio, dim_head)
        self.scale = self.dim_qk**-0.5

        window = tuple(b + 2 * h for b, h in zip(self.block_size, self.halo_size, strict=True))
        self.rel_pos_emb = (
            None
            if rel_pos is None
            else RelPosEmb(self.block_size, (window[0], window[1]), self.dim_qk, rel_pos)
        )
        self.to_q = nn.Linear(dim, heads * self.dim_qk, bias=qkv_bias)
        self.to_kv = nn.Linear(dim, heads * (self.dim_qk + self.dim_v), bias=qkv_bias)
        inner = heads * self.dim_v
        if not out_proj and dim_out not in (None, inner):
            raise ValueError(f"dim_out must be {inner} without out_proj, got {dim_out=}.")
        self.dim_out = (dim_out or dim) if out_proj else inner
        self.to_out = nn.Linear(inner, self.dim_out) if out_proj else nn.Identity()

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, block_size={self.block_size}, halo_size={self.halo_size}, "
            f"heads={self.heads}, stride={self.stride}, padding={self.padding!r}"
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, dim, height, width) -> (batch, dim_out, height / stride, width / stride).

        Sizes are rounded up. The result lies in memory with its channels last.
        """
        check_dense("x", x)
        if x.ndim != 4 or x.shape[1] != self.dim:
            raise ValueError(
                f"x must be (batch, {self.dim}, height, width), got {tuple(x.shape)}."
            )
        if self._one_at_a_time(x):
            return torch.cat([self._forward(image) for image in x.split(1)])
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        whole = known(x.shape[2], x.shape[3]) and not is_lowering()
        attention = self._attend if whole else self._windowed
        if self.padding == "inverted":
            attention = self._inverted
        # no name holds q, k and v, so that they are gone before the output is projected
        out = attention(*self._project(x))
        return self.to_out(fold(out, 3, 4)).permute(0, 3, 1, 2)

    def _one_at_a_time(self, x: Tensor) -> bool:
        """Whether to share the memory of q, k and v: new memory costs more than the arithmetic."""
        return (
            x.device.type == "cpu"
            and not torch.compiler.is_compiling()
            and x.shape[0] > 1
            and x[0].numel() * x.element_size() >= _LARGE_MAP
            # what is hooked or wrapped sees the whole batch at once
            and all(map(_is_plain, (self.to_q, self.to_kv, self.to_out)))
        )

    @property
    def pattern(self) -> Halo:
        """Who attends to whom, in a map of three blocks a side; `pattern_of` for any other."""
        height, width = self.block_size
        return self.pattern_of(3 * height, 3 * width)

    def pattern_of(self, height: int, width: int) -> Halo:
        """Who attends to whom in a map of this size."""
        return Halo((height, width), self.block_size, self.halo_size, self.stride)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v as (batch, height, width, heads, features); the queries strided."""
        x = x.permute(0, 2, 3, 1)
        widths = (self.heads * self.dim_qk, self.heads * self.dim_v)
        layers = (self.to_q, self.to_kv)
        if self.stride == 1 and all(map(_is_plain, layers)) and _alike(*layers):
            weight, bias = _joined(*layers)
            q, k, v = _linear(x, weight, bias).split((widths[0], *widths), dim=-1)
        else:
            q = _called(self.to_q, x[:, :: self.stride, :: self.stride])
            k, v = _called(self.to_kv, x).split(widths, dim=-1)
        return (
            q.unflatten(-1, (self.heads, self.dim_qk)),
            k.unflatten(-1, (self.heads, self.dim_qk)),
            v.unflatten(-1, (self.heads, self.dim_v)),
        )

    def _bias(self, q: Tensor) -> WindowBias | None:
        if self.rel_pos_emb is None:
            return None
        scale = self.scale if self.scale_rel_pos else 1.0
        logits = self.rel_pos_emb.window_logits(q, self.stride, scale, self.true_offsets)
        return WindowBias(*logits)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(batch, query height, query width, heads, dim_v)."""
        size, pattern = q.shape[1:3], self.pattern_of(k.shape[1], k.shape[2])
        bias = self._bias(q)
        dropout = self.dropout if self.training else 0.0
        q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in (q, k, v))
        if self.padding == "mask":
            out = attend(q, k, v, pattern, bias=bias, scale=self.scale, dropout_p=dropout)
        else:
            out, lse = attend(
                q,
                k,
                v,
                pattern,
                bias=bias,
                scale=self.scale,
                dropout_p=dropout,
                return_lse=True,
            )
            # merge() with a part that reads zeros: only the weight of the map is left of it
            out = out * torch.sigmoid(lse - _outside(pattern, bias, lse)).to(out.dtype)[..., None]
        return out.transpose(1, 2).unflatten(1, size)

    def _windowed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        bias = self._bias(q)
        if bias is None:
            shape = (q.shape[0], self.heads, q.shape[1] * q.shape[2])
            window = (b + 2 * h for b, h in zip(self.block_size, self.halo_size, strict=True))
            bias = WindowBias(*(q.new_zeros(*shape, side) for side in window))
        return windowed_attention(
            q,
            k,
            v,
            *bias,
            block=self.block_size,
            halo=self.halo_size,
            stride=self.stride,
            read_padding=self.padding == "attend",
            scale=self.scale,
            dropout_p=self.dropout if self.training else 0.0,
        )

    def _inverted(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """halonet-pytorch 0.0.4: the mean of a whole window, zero where it leaves the map."""
        size = (v.shape[1], v.shape[2])
        v = v.flatten(3).permute(0, 3, 1, 2)
        (block_h, block_w), (halo_h, halo_w) = self.block_size, self.halo_size
        bottom, right = -size[0] % block_h, -size[1] % block_w
        edges = [halo_w, halo_w + right, halo_h, halo_h + bottom]
        window = (block_h + 2 * halo_h, block_w + 2 * halo_w)
        inside = avg_pool2d(pad(torch.ones_like(v[:1, :1]), edges), window, self.block_size)
        mean = avg_pool2d(pad(v, edges), window, self.block_size)
        # a window that leaves the map by one pixel has a share of at most 1 - 1 / area
        mean = mean * (inside > 1 - 0.5 / (window[0] * window[1]))
        mean = mean.repeat_interleave(block_h, 2).repeat_interleave(block_w, 3)
        mean = mean[:, :, : size[0] : self.stride, : size[1] : self.stride]
        return mean.permute(0, 2, 3, 1).unflatten(3, (self.heads, self.dim_v))


def _is_plain(layer: nn.Module) -> bool:
    return is_plain(layer, nn.Linear, nn.Identity)


def _called(layer: nn.Module, x: Tensor) -> Tensor:
    """A projection of (batch, height, width, dim): by its weights only if it is no more."""
    return _linear(x, layer.weight, layer.bias) if is_plain(layer) else layer(x)  # type: ignore[arg-type]


def _alike(a: nn.Linear, b: nn.Linear) -> bool:
    """Whether the weights of two layers can be joined."""
    one, other = a.weight, b.weight
    same = one.dtype == other.dtype and one.device == other.device
    return same and (a.bias is None) == (b.bias is None)


def _joined(*layers: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """One weight and bias for layers that read the same input."""
    weight = torch.cat([layer.weight for layer in layers])
    if layers[0].bias is None:
        return weight, None
    return weight, torch.cat([layer.bias for layer in layers])


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """linear() of (batch, height, width, dim); one map with its channels first is not copied."""
    if known(*x.shape) and len(x) == 1:
        # views whose gradients are views: x[0] would copy a map of zeros around its gradient
        return linear(x.squeeze(0).flatten(0, 1), weight, bias).unflatten(0, x.shape[1:3])[None]
    return linear(x.contiguous(), weight, bias)


def _width(name: str, ratio: float, dim_head: int) -> int:
    width = round(ratio * dim_head)
    if width < 1:
        raise ValueError(f"{name} leaves no feature of {dim_head=}, got {name}={ratio}.")
    return width


def _outside(pattern: Halo, bias: WindowBias | None, lse: Tensor) -> Tensor:
    """Log-sum-exp of the position logits of window pixels beyond the map: (batch, heads, n)."""
    q_at = pattern.query_coordinates(torch.arange(lse.shape[-1], device=lse.device))
    inside, outside = [], []
    for axis in (0, 1):
        block, halo = pattern.block[axis], pattern.halo[axis]
        place = torch.arange(-halo, block + halo, device=lse.device)
        at = q_at[axis][:, None] // block * block + place
        within = (at >= 0) & (at < pattern.size[axis])  # type: ignore[index]
        logits = bias[axis].to(lse.dtype) if bias else lse.new_zeros(1, 1, *at.shape)
        inside.append(logsumexp_rows(logits.masked_fill(~within, -torch.inf)))
        outside.append(logsumexp_rows(logits.masked_fill(within, -torch.inf)))
    every_column = logsumexp_rows(torch.stack([inside[1], outside[1]], -1))
    corners = torch.stack([outside[0] + every_column, inside[0] + outside[1]], -1)
    return logsumexp_rows(corners)
