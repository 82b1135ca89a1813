"""MapAttention: its mathematics pixel by pixel, and maps of sizes other than that of training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from foveal.layers.map_attention import MapAttention
from foveal.testing import assert_close


def by_loops(layer: MapAttention, x: Tensor) -> Tensor:
    """The definition: every query meets every key, and the entries of where that stands."""
    _, _, height, width = x.shape
    rows, columns = layer.size
    scale = layer.scale if layer.scale_rel_pos else 1.0
    pixels = x.permute(0, 2, 3, 1)
    q, kv = layer.to_q(pixels), layer.to_kv(pixels)
    out = x.new_zeros(x.shape[0], layer.heads * layer.dim_v, height, width)
    for head in range(layer.heads):
        q_of = q[..., head * layer.dim_qk :][..., : layer.dim_qk]
        k_of = kv[..., head * layer.dim_qk :][..., : layer.dim_qk]
        v_of = kv[..., layer.heads * layer.dim_qk + head * layer.dim_v :][..., : layer.dim_v]
        for y in range(height):
            for z in range(width):
                logits = []
                for a in range(height):
                    for b in range(width):
                        down = min(max(a - y, 1 - rows), rows - 1) + rows - 1
                        across = min(max(b - z, 1 - columns), columns - 1) + columns - 1
                        place = layer.rel_height[down] + layer.rel_width[across]
                        key = k_of[:, a, b] * layer.scale + place * scale
                        logits.append((q_of[:, y, z] * key).sum(-1))
                weights = torch.stack(logits, -1).softmax(-1)
                mixed = torch.einsum("bn,bnd->bd", weights, v_of.flatten(1, 2))
                out[:, head * layer.dim_v :, y, z][:, : layer.dim_v] = mixed
    return out


@pytest.mark.parametrize("size", [(3, 4), (2, 3), (5, 1), (4, 6)])
@pytest.mark.parametrize("scaled", [True, False])
def test_every_pair_of_pixels(size: tuple[int, int], scaled: bool) -> None:
    """Maps of the size of training, smaller ones and larger ones, to float64 rounding."""
    torch.manual_seed(0)
    layer = MapAttention(6, (3, 4), 4, 2, value_ratio=0.75, scale_rel_pos=scaled, qkv_bias=True)
    layer.double()
    x = torch.randn(2, 6, *size, dtype=torch.float64)
    assert_close(layer(x), by_loops(layer, x), 1e-12)


def test_sizes_are_checked() -> None:
    """A size or a width that is none is named."""
    with pytest.raises(ValueError, match="size"):
        MapAttention(8, (0, 3))
    with pytest.raises(ValueError, match="dim_v"):
        MapAttention(8, 3, 4, value_ratio=0.05)
