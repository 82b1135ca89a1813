"""What stands between a forward pass and its backward pass: hooks, checkpoints, changes."""

from __future__ import annotations

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import foveal
from foveal import patterns as P

IMPLS = [None, "reference", "dense", "tiled", "native"]
PATTERNS = [
    P.SlidingWindow(8),
    P.Halo((8, 8), 4, 1),
    P.Pyramid(4, causal=True),
    P.Full(causal=True),
]
every_call = pytest.mark.parametrize(
    ("pattern", "impl"),
    [(p, impl) for p in PATTERNS for impl in IMPLS if not (p.pools and impl == "dense")],
    ids=str,
)


def tensors():
    torch.manual_seed(0)
    return [torch.randn(1, 2, 64, 8, requires_grad=True) for _ in "qkv"]


def gradients(given, out):
    return torch.autograd.grad(out.square().sum(), given)


def assert_same(ours, theirs):
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@every_call
def test_saved_tensors_may_be_packed(pattern, impl):
    """Hooks that keep saved tensors elsewhere see them all, and what they give back is used."""
    given = tensors()
    wanted = gradients(given, foveal.attend(*given, pattern, impl=impl))
    packed = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: packed.append(x.shape) or (x.dtype, x.double()), lambda kept: kept[1].to(kept[0])
    ):
        out = foveal.attend(*given, pattern, impl=impl)
    assert len(packed) >= 3
    assert_same(gradients(given, out), wanted)


@every_call
@pytest.mark.parametrize("reentrant", [True, False])
def test_calls_may_be_checkpointed(pattern, impl, reentrant):
    """Computed again in the backward pass, of either kind."""
    given = tensors()
    wanted = gradients(given, foveal.attend(*given, pattern, impl=impl))
    checkpoint(
        lambda *x: foveal.attend(*x, pattern, impl=impl), *given, use_reentrant=reentrant
    ).square().sum().backward()
    assert_same([x.grad for x in given], wanted)


@every_call
@pytest.mark.parametrize("changed", range(3))
def test_a_change_in_place_is_never_silent(pattern, impl, changed):
    """Of q, k or v after the forward pass: torch's error, or the gradients of what was read."""
    given = tensors()
    wanted = gradients(given, foveal.attend(*given, pattern, impl=impl))
    copies = [x * 1 for x in given]
    out = foveal.attend(*copies, pattern, impl=impl)
    copies[changed].mul_(2)
    try:
        found = gradients(given, out)
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)  # noqa: PT017 - or none
    else:
        assert_same(found, wanted)


class Table(P.Pattern):
    """Pairs that a tensor lists."""

    causal = True

    def __init__(self, allowed):
        object.__setattr__(self, "allowed", allowed)

    def allows(self, q_idx, k_idx):
        return self.allowed[q_idx, k_idx]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("how", ["tensor", "attribute"])
def test_nor_is_a_pattern_that_changes(impl, how):
    """A pattern that holds a tensor: the pairs of the forward pass, or an error that says so."""
    given = tensors()
    pattern = Table(torch.ones(64, 64, dtype=torch.bool).tril())
    wanted = gradients(given, foveal.attend(*given, pattern, impl=impl))
    out = foveal.attend(*given, pattern, impl=impl)
    if how == "tensor":
        pattern.allowed[:, 3:20] = False
    else:
        vars(pattern)["allowed"] = torch.eye(64, dtype=torch.bool)
    try:
        found = gradients(given, out)
    except RuntimeError as error:
        assert "Table is another pattern" in str(error)  # noqa: PT017 - or none
    else:
        assert_same(found, wanted)


@every_call
def test_traced_without_a_warning(pattern, impl):
    """torch.jit.trace records every implementation, and no value is asked of its graph."""
    given = [x.detach() for x in tensors()]

    def call(q, k, v):
        return foveal.attend(q, k, v, pattern, impl=impl)

    traced = torch.jit.trace(call, given, check_trace=False)
    others = [x.flip(2) for x in given]
    assert_same([traced(*others)], [call(*others)])
