"""flex_attention: what a BlockMask is made into, and kept."""

from __future__ import annotations

import array
import gc
import weakref

import pytest
import torch
from mod_cases import (
    BATCH,
    CASES,
    HEADS,
    Case,
    N,
    block_mask,
    causal,
    dense,
    gradients,
    run,
    softcap,
    tensors,
)
from torch import Tensor
from torch.nn.attention import flex_attention as theirs

import foveal
from foveal.ops.mods import cells, chunks, plan
from foveal.testing import assert_close


def test_a_plan_is_made_once_for_a_mask_that_stays_as_it_is():
    """The mask_mod is asked again when a tensor, number or block that it uses has changed."""
    ends, reach = torch.tensor([70, 110]), 5
    asked = []

    def mod(b, h, q, k):
        asked.append(1)
        return (k < ends[b]) & ((q - k).abs() < reach)

    lengths = (130, 130)
    mask = theirs.create_block_mask(mod, BATCH, None, *lengths, device="cpu", BLOCK_SIZE=32)
    q, k, v = tensors(lengths=lengths)

    def check(again: bool) -> None:
        asked.clear()
        out, _ = run(Case(mod), q, k, v, mask)
        assert bool(asked) == again
        assert_close(out, dense(Case(mod), q, k, v)[0], 1e-12)

    check(True)
    check(False)
    ends[0] = 60
    check(True)
    reach = 3
    check(True)
    check(False)
    asked.clear()  # it is in the closure as well
    run(Case(mod, softcap), q, k, v, mask)
    check(False)


def test_a_plan_goes_with_its_mask():
    """Nothing keeps a BlockMask alive."""
    q, k, v = tensors()
    mask = block_mask(CASES["documents"])
    run(CASES["documents"], q, k, v, mask)[0].sum().backward()
    gone = weakref.ref(mask)
    del mask
    gc.collect()
    assert gone() is None


def test_full_and_missing_blocks_are_not_asked():
    """What a BlockMask lists holds: a mask_mod speaks of partial blocks only."""
    mask = theirs.BlockMask.from_kv_blocks(
        torch.tensor([[[1, 0, 2]]], dtype=torch.int32),
        torch.tensor([[[[0, 9, 9], [9, 9, 9], [2, 1, 9]]]], dtype=torch.int32),
        torch.tensor([[[1, 1, 0]]], dtype=torch.int32),
        torch.tensor([[[[2, 0, 0], [1, 0, 0], [0, 0, 0]]]], dtype=torch.int32),
        BLOCK_SIZE=(40, 30),
        mask_mod=lambda b, h, q, k: (q + k) % 2 == 0,
        seq_lengths=(115, 85),
        compute_q_blocks=False,
    )
    i, j = torch.arange(115)[:, None], torch.arange(85)
    even = (i + j) % 2 == 0
    block = i // 40 * 3 + j // 30
    full = (block == 2) | (block == 4)
    partial = (block == 0) | (block == 7) | (block == 8)
    allowed = full | (partial & even)
    q, k, v = tensors(lengths=(115, 85))
    for score in (None, softcap):
        found = run(Case(None, score), q, k, v, mask)
        expected = dense(Case(lambda *_: allowed, score), q, k, v)
        assert_close(found[0], expected[0], 1e-12)
        assert_close(found[1], expected[1], 1e-12)


@pytest.mark.parametrize("name", ["causal", "padding", "padded, by head", "T5, causal documents"])
@pytest.mark.parametrize("most", [0, 300])
def test_masks_that_are_too_many_are_asked_for_at_each_tile(name, most, monkeypatch):
    """Beyond a number of bytes nothing is kept, and every result is the same; chunks of a tile."""
    monkeypatch.setattr(cells, "MOST_KEPT", most)
    monkeypatch.setattr("foveal.ops.mods.fast.MOST_KEPT", 4 * most)
    monkeypatch.setattr(chunks, "CHUNK", 1)
    case, (q, k, v) = CASES[name], tensors()
    found = run(case, q, k, v, block_mask(case, 64))
    inputs = [q, k, v, *case.captured]
    expected = dense(case, q, k, v)
    assert_close(found[1], expected[1], 1e-10)
    for one, other in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        assert_close(one, other, 1e-10)


def test_chunks_leave_nothing_behind(monkeypatch):
    """What a mod makes of one chunk is gone when the next one runs, forward and backward."""
    monkeypatch.setattr(chunks, "CHUNK", 64 * 64)
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = array.array("i", [0])

    def mod(score, b, h, q, k):
        most[0] = max(most[0], len(alive))
        result = torch.tanh(score * 2) / 2
        alive.add(result)
        return result

    q, k, v = tensors(lengths=(N, N))
    mask = block_mask(CASES["documents"], 64)
    foveal.flex_attention(q, k, v, mod, mask).sum().backward()
    assert most[0] <= 1
    assert len(alive) == 0


def test_full_cells_apart_from_the_others(monkeypatch):
    """Where masks of whole tiles would be large, full cells are attended apart and merged."""
    monkeypatch.setattr("foveal.ops.mods.fast.MOST_KEPT", 8000)
    for name in ("causal", "rows without keys"):
        case, (q, k, v) = CASES[name], tensors()
        found = run(case, q, k, v, mask := block_mask(case, 32))
        made = plan.plan(mask, (N, N), BATCH, HEADS, q.device)
        assert len(foveal.ops.mods.fast.patterns(made, made.parts[0]) or ()) == 2
        expected = dense(case, q, k, v)
        assert_close(found[0], expected[0], 1e-12)
        inputs = [q, k, v]
        for one, other in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
            assert_close(one, other, 1e-10)


def test_equal_masks_are_kept_once():
    """A causal mask has one diagonal, however long; sequences that read the same share tiles."""
    mask = theirs.create_block_mask(causal, BATCH, HEADS, 640, 640, device="cpu")
    made = plan.plan(mask, (640, 640), BATCH, HEADS, torch.device("cpu"))
    assert len(made.parts) == 1
    assert len(made.cells.masks) == 2  # a tile of 64 queries reads two cells of 32 keys there
