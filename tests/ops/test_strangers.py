"""Patterns of a user's own, with a table of biases or with pooled keys, need nothing in the room
of operations: they are defined here, and every implementation that can serves them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import foveal
from foveal import TableBias
from foveal import patterns as P
from foveal.caches import AttentionCache
from foveal.testing import assert_close, assert_pattern, dense_attention


@dataclass(frozen=True)
class Distances(P.Pattern):
    """A centred window whose pairs gain a number for their distance."""

    reach: int

    biased_by_table = True

    @property
    def bias_size(self) -> int:
        return 2 * self.reach + 1

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        return (q_idx - k_idx).abs() <= self.reach

    def bias_place(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        return (k_idx - q_idx + self.reach).clamp(0, 2 * self.reach)


@dataclass(frozen=True)
class FarMeans(P.Pattern):
    """The past: two blocks of four token by token, whatever lies before as the means of blocks."""

    causal: bool = True

    pools = True

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        return k_idx <= q_idx

    def level(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        return torch.where(q_idx // 4 - k_idx // 4 > 1, 2, 0)

    def num_levels(self, length: int) -> int:
        return 3


def inputs(n: int, m: int | None = None, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(n)
    sizes = ((2, 4, n, 8), (2, 2, m or n, 8), (2, 2, m or n, 6))
    return [torch.randn(size, dtype=dtype, requires_grad=True) for size in sizes]


def gradients(out: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return list(torch.autograd.grad((out * weight).sum(), tensors))


# -- a table of biases --------------------------------------------------------------------------


def by_hand(q: Tensor, k: Tensor, v: Tensor, reach: int, table: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the window, the bias of each pair looked up in a loop."""
    rows = []
    for i in range(q.shape[2]):
        near = range(max(0, i - reach), min(k.shape[2], i + reach + 1))
        keys, values = (x[:, :, near].repeat_interleave(2, 1) for x in (k, v))
        logits = (keys @ q[:, :, i, :, None])[..., 0] / math.sqrt(8)
        logits = logits + torch.stack([table[j - i + reach].expand(4) for j in near], 1)
        logits = logits.masked_fill(~mask[:, None, near], -torch.inf)
        rows.append((logits.softmax(-1)[..., None, :] @ values)[..., 0, :])
    return torch.stack(rows, 2)


@pytest.mark.parametrize("impl", [None, "reference", "dense", "tiled"])
@pytest.mark.parametrize(("n", "heads"), [(1, 4), (13, 1), (70, 4), (131, 4)])
def test_table_of_biases(n, heads, impl):
    """Outputs and all gradients, the table's included, are those of a plain loop."""
    pattern, (q, k, v) = Distances(5), inputs(n)
    assert_pattern(pattern, n)
    table = torch.randn(pattern.bias_size, heads, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(2, n, dtype=torch.bool)
    mask[1, n // 2 + 1 :: 3] = False
    got = foveal.attend(q, k, v, pattern, bias=TableBias(table), key_mask=mask, impl=impl)
    wanted = by_hand(q, k, v, 5, table, mask)
    assert_close(got, wanted, 1e-10)
    tensors = [q, k, v, table]
    for one, two in zip(gradients(got, tensors), gradients(wanted, tensors), strict=True):
        assert_close(one, two, 1e-9)


def test_table_that_does_not_fit():
    """Another number of rows, or a tensor, is named."""
    q, k, v = inputs(9)
    with pytest.raises(ValueError, match=r"table.*\(11, 4 or 1\)"):
        foveal.attend(q, k, v, Distances(5), bias=TableBias(torch.zeros(3, 4)))
    with pytest.raises(ValueError, match="Distances takes a TableBias"):
        foveal.attend(q, k, v, Distances(5), bias=torch.zeros(9, 9, dtype=torch.float64))


# -- pooled keys --------------------------------------------------------------------------------


def means_by_hand(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Far blocks replaced by their means, in a loop: of values over real tokens, of keys over
    the halves of a block that have any."""
    rows = []
    for i in range(q.shape[2]):
        keys, values, real = k[:, :, : i + 1].clone(), v[:, :, : i + 1].clone(), mask[:, : i + 1]
        for start in range(0, max(0, (i // 4 - 1) * 4), 4):
            block = slice(start, start + 4)
            weight = mask[:, None, block, None].to(q.dtype)
            count = weight.sum(2, keepdim=True).clamp(min=1)
            values[:, :, block] = (v[:, :, block] * weight).sum(2, keepdim=True) / count
            halves = (x.unflatten(2, (2, 2)).sum(3) for x in (k[:, :, block] * weight, weight))
            total, count = halves
            some = (count > 0).to(q.dtype)
            means = total / count.clamp(min=1)
            keys[:, :, block] = means.sum(2, keepdim=True) / some.sum(2, keepdim=True).clamp(min=1)
        one = dense_attention(q[:, :, i : i + 1], keys, values, P.Full(), key_mask=real)
        rows.append(one[0][:, :, 0])
    return torch.stack(rows, 2)


@pytest.mark.parametrize("impl", [None, "reference", "tiled", "native"])
@pytest.mark.parametrize("n", [1, 7, 16, 67])
def test_pooled_keys(n, impl):
    """Outputs and gradients are those of a loop that writes the means in place of far keys."""
    native = impl == "native"
    if native and (reason := foveal.ops.native.build.why_not()):
        pytest.skip(reason)
    pattern, tensors = FarMeans(), inputs(n, dtype=torch.float32 if native else torch.float64)
    mask = torch.ones(2, n, dtype=torch.bool)
    mask[1, 2::3] = False
    got = foveal.attend(*tensors, pattern, key_mask=mask, impl=impl)
    double = [x.detach().double().requires_grad_() for x in tensors]
    wanted = means_by_hand(*double, mask)
    tolerance = 1e-5 if native else 1e-9
    assert_close(got, wanted, tolerance)
    for one, two in zip(gradients(got, tensors), gradients(wanted, double), strict=True):
        assert_close(one, two, tolerance)


@pytest.mark.usefixtures("unforced")
def test_pooled_keys_are_counted():
    """Pairs, explanation, FLOPs and decoding know that clusters are read as one."""
    pattern, n = FarMeans(), 67
    pairs = sum(max(0, i // 4 - 1) + (i % 4 + 1) + 4 * (i >= 4) for i in range(n))
    assert pattern.num_pairs(n) == pairs
    said = foveal.explain(pattern, n)
    assert said.pairs == pairs <= said.visited
    assert said.impl in ("native", "tiled")
    assert "pool" in said.alternatives["dense"]
    with pytest.raises(ValueError, match="pools"):
        AttentionCache(pattern, 1, 2, 8)
