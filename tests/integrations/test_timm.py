"""timm: its layers, networks and registry beside ours (`make test-integrations`)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

import foveal
from foveal.common.packages import how_to_get

timm = pytest.importorskip("timm", reason=f"timm is not installed: {how_to_get('timm')}")

from timm.layers.halo_attn import HaloAttn  # noqa: E402


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"stride": 2, "avg_down": True},
        {"qkv_bias": True, "dim_head": 16, "scale_pos_embed": True},
        {"dim_out": 48, "qk_ratio": 0.34},
    ],
    ids=["plain", "strided", "pooled", "biased", "narrow"],
)
def test_a_layer(options: dict[str, Any]) -> None:
    """HaloAttn: interleaved keys and values, padding that attends, its own offsets; gradients."""
    sizes: dict[str, Any] = {"block_size": 4, "halo_size": 1, "num_heads": 4}
    theirs = HaloAttn(32, **sizes, **options)
    known = {k: options[k] for k in ("stride", "avg_down", "scale_pos_embed") if k in options}
    ours = foveal.load_upstream(theirs.state_dict(), config={**sizes, **known})
    a = torch.randn(2, 32, 8, 12, requires_grad=True)
    b = a.detach().clone().requires_grad_()
    one, other = theirs(a), ours(b)
    assert_close(other, one, rtol=1e-4, atol=1e-5)
    gradient = torch.randn_like(one)
    one.backward(gradient)
    other.backward(gradient)
    assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-5)
