"""extend() of a layer with a mask of each row: what the masked forward pass gives."""

from __future__ import annotations

import pytest
import torch

from foveal import patterns as P
from foveal.layers import SelfAttention
from foveal.testing import assert_close

LENGTH, DIM = 43, 16
PATTERNS = {
    "window": P.SlidingWindow(9),
    "all": P.Full(causal=True),
    "blocks": P.Blocks(8, True, 1),
    "strided": P.Strided(6),
    "prefix": P.Prefix(3, causal=True) | P.SlidingWindow(5),
    "picture": P.TextImage(3, P.Axial((5, 8), "column", causal=True)),
    "heads": P.BlockSparse(
        torch.rand(2, 6, 6, generator=torch.Generator().manual_seed(1)) < 0.6, 8, True
    ),
}
OPTIONS = {"plain": {}, "grouped": {"kv_heads": 1}, "shaped": {"sinks": True, "softcap": 3.0}}


def check(layer: torch.nn.Module) -> None:
    """Pieces of several sizes, some of one token, in rows of which other tokens are real."""
    torch.manual_seed(0)
    layer = layer.double().eval()
    x = torch.randn(3, LENGTH, DIM, dtype=torch.float64)
    mask = torch.rand(3, LENGTH) < 0.7
    mask[1] = True
    mask[2, :20] = False  # nothing to read at first
    x = x.masked_fill(~mask[..., None], 7.0)
    with torch.no_grad():
        want = layer(x, mask)
        cache, first, found = layer.make_cache(3), 0, []
        for count in (6, 1, 9, 1, 1, 25):
            stop = first + count
            advance = layer.step if count == 1 else layer.extend
            y, cache = advance(x[:, first:stop], cache, mask[:, :stop])
            found.append(y)
            first = stop
    assert_close(torch.cat(found, 1), want, 1e-9)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", PATTERNS)
def test_attention(name: str, options: dict) -> None:
    """Caches that hold keys, of windows, prefixes, pictures and heads apart."""
    check(SelfAttention(DIM, PATTERNS[name], heads=2, dim_head=8, **options))
