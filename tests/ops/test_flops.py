"""torch's FlopCounterMode counts attention: the pairs of a pattern, forward and backward."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import foveal
from foveal import patterns as P
from foveal.ops.native import build

LAYOUTS = torch.tensor([[[1, 0], [1, 1]], [[0, 1], [1, 0]]])

# by hand, for 6 tokens: the pairs of one head
CASES = {
    "window": (P.SlidingWindow(3), 1 + 2 + 3 + 3 + 3 + 3),
    "causal": (P.Full(causal=True), 21),
    "full": (P.Full(), 36),
    "blocks": (P.Blocks(4), 4 * 4 + 2 * 2),
    "halo": (P.Halo((2, 3), (1, 3), (1, 0)), 36),
    "row": (P.Axial((2, 3)), 2 * 3 * 3),
    "union": (P.SlidingWindow(2) | P.Blocks(3, causal=True), 6 + 5 + 2),
    # both blocks are neighbours, so that no key is pooled
    "pyramid": (P.Pyramid(4, causal=True), 21),
    # of blocks of 3: head 0 reads three of them, head 1 two
    "heads": (P.BlockSparse(LAYOUTS, 3), (27 + 18) / 2),
}


def counted(pattern, impl, backward=False, **options):
    q, k, v = (torch.randn(2, heads, 6, dim) for heads, dim in ((4, 8), (2, 8), (2, 5)))
    q = q[:, : pattern.heads]
    inputs = [x.clone().requires_grad_(backward) for x in (q, k, v)]
    with FlopCounterMode(display=False) as counter:
        out = foveal.attend(*inputs, pattern, impl=impl, **options)
        if backward:
            out.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("impl", ["tiled", "native"])
@pytest.mark.parametrize("name", CASES)
def test_pairs_times_products(name, impl):
    """Two products forward and five backward, of the pairs that the pattern allows."""
    pattern, pairs = CASES[name]
    if impl == "native" and (reason := build.why_not()):
        pytest.skip(reason)
    heads = 2 * (pattern.heads or 4)
    forward = 2 * pairs * heads * (8 + 5)
    assert counted(pattern, impl) == forward
    assert counted(pattern, impl, backward=True) == forward + 2 * pairs * heads * (3 * 8 + 2 * 5)


def test_what_shapes_weights_counts_nothing():
    """Padding, dropout and biases change no count."""
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[:, 4:] = False
    more = counted(P.SlidingWindow(3), "tiled", key_mask=mask, dropout_p=0.5, bias=torch.ones(6))
    assert more == counted(P.SlidingWindow(3), "tiled")


@pytest.mark.parametrize("masked", [False, True])
def test_dense_counts_as_torch_does(masked):
    """What torch's fused kernel computes counts all pairs, on the CPU too."""
    pattern = P.SlidingWindow(3) if masked else P.Full()
    wide = 8  # the kernel pads values to the size of keys
    assert counted(pattern, "dense") == 2 * 36 * 8 * (8 + wide)
    both = counted(pattern, "dense", backward=True)
    assert both == 2 * 36 * 8 * (8 + wide + 3 * 8 + 2 * wide)


def test_flex_leaves_the_call_to_others(monkeypatch):
    """Torch's counter fails on FlexAttention: another one computes; asked by name it says so."""
    with pytest.raises(ValueError, match="FlopCounterMode"):
        counted(P.SlidingWindow(3), "flex")
    monkeypatch.setenv("FOVEAL_IMPL", "flex")
    assert counted(P.Pyramid(4, causal=True), None) == counted(P.Pyramid(4, causal=True), "tiled")


def test_every_operator_has_formulas():
    """The Triton kernels too, which run elsewhere."""
    for name in ("tiled", "native", "triton"):
        for way in ("forward", "backward"):
            assert getattr(torch.ops.foveal, f"{name}_{way}") in flop_registry


@pytest.mark.parametrize("first", ["import foveal", "from torch.utils import flop_counter"])
def test_whatever_is_imported_first(first, after_torch):
    """Formulas are there whenever the counter is; importing foveal does not load it."""
    code = f"""
import sys, torch
{first}
assert ("torch.utils.flop_counter" in sys.modules) == ("flop" in {first!r})
import foveal
from torch.utils.flop_counter import flop_registry
assert any("foveal" in str(packet) for packet in flop_registry)
"""
    after_torch(code)
