"""Does every view of a pattern agree with its definition?"""

from __future__ import annotations

import torch
from torch import Tensor

from foveal.patterns.base import Pattern
from foveal.patterns.tiling import Tiling


def assert_pattern(pattern: Pattern, length: int, block: int = 8) -> None:
    """Check `mask`, `tiles`, `overlap`, `num_pairs` and the decoding views against `allows`.

    The test that a new pattern has to pass, at the lengths where its geometry could go wrong: 0,
    1, around tiles and blocks, and sizes that do not divide. Counts and plans are compared at a
    few shorter lengths as well, where the pattern bears them: a form that is right at one length
    may be wrong at the next.

    Args:
        pattern: the pattern under test.
        length: sequence length, at most a few hundred: everything is compared densely.
        block: stretch of queries and keys on which `overlap` is tried.

    Raises:
        AssertionError: naming the view that disagrees, and where.
    """
    for shorter in sorted({0, 1, length // 3, length // 2 + 1, length - 1} - {length}):
        if _bears(pattern, shorter):
            _check_counts(pattern, shorter)
    mask = _check_counts(pattern, length)
    own = pattern.natural_length
    expect(own is None or _bears(pattern, own), f"natural_length is {own}, which it refuses")
    _check_overlap(pattern, mask, block)
    if pattern.is_causal:
        _check_decoding(pattern, mask if mask.dim() == 2 else mask.any(0))


def _bears(pattern: Pattern, length: int) -> bool:
    """Whether a sequence of this length makes sense for the pattern."""
    try:
        pattern.check_length(length)
        pattern.num_queries(length)
    except ValueError:
        return False
    return True


def _check_counts(pattern: Pattern, length: int) -> Tensor:
    """Compare mask, count and plan at one length; returns the mask."""
    num_queries = pattern.num_queries(length)
    queries, keys = torch.arange(num_queries, device="cpu"), torch.arange(length, device="cpu")
    mask = pattern.mask(num_queries, length)
    shape = (*(() if pattern.heads is None else (pattern.heads,)), num_queries, length)
    expect(mask.shape == shape, f"mask has shape {tuple(mask.shape)}, expected {shape}")
    expect(
        bool((pattern.allows(queries[:, None], keys[None]) == mask).all()),
        "mask differs from allows",
    )
    expect(
        pattern.num_pairs(length) == int(mask.sum()),
        f"num_pairs says {pattern.num_pairs(length)}, the mask has {int(mask.sum())} ({length=})",
    )
    if pattern.always_reads:
        expect(bool(mask.any(-1).all()), "always_reads is True but a query reads nothing")
    heads = mask if mask.dim() == 3 else mask[None]
    for one, its_mask in zip(pattern.per_head(), heads, strict=True):
        _check_tiles(one.tiles(length), its_mask)
    return mask


def expect(holds: bool, message: str) -> None:
    """Raise AssertionError with this message unless the condition holds."""
    if not holds:
        raise AssertionError(message)


def tiling_mask(tiling: Tiling) -> Tensor:
    """The dense mask that a tile plan computes: (num_queries, num_keys) bool.

    Raises:
        AssertionError: a query stands in two tiles, or a pair is computed twice.
    """
    pairs = torch.zeros(tiling.num_queries, tiling.num_keys, dtype=torch.int, device="cpu")
    places = torch.zeros(tiling.num_queries, dtype=torch.int, device="cpu")
    for group in tiling.groups:
        queries, keys = group.queries.index(), group.key_index()
        places.index_add_(0, queries.flatten(), torch.ones_like(queries.flatten()).int())
        size = (group.num_tiles, group.tile_q, group.tile_k)
        on = (
            torch.ones(size, dtype=torch.bool, device="cpu")
            if group.mask is None
            else group.mask.expand(size)
        )
        at = (queries[:, :, None] * tiling.num_keys + keys[:, None, :])[on]
        pairs.view(-1).index_add_(0, at, torch.ones_like(at).int())
    expect(bool((places <= 1).all()), "tiles: a query stands in two tiles")
    expect(bool((pairs <= 1).all()), "tiles: a pair is computed twice")
    return pairs.bool()


def _check_tiles(tiling: Tiling, mask: Tensor) -> None:
    planned = tiling_mask(tiling)
    wrong = (planned != mask).nonzero()
    if len(wrong):
        query, key = wrong[0].tolist()
        what = "leak" if planned[query, key] else "lose"
        raise AssertionError(f"tiles {what} {len(wrong)} pairs, first {query=}, {key=}")
    expect(tiling.num_pairs == int(mask.sum()), "tiles.num_pairs differs from the mask")


def _check_overlap(pattern: Pattern, mask: Tensor, block: int) -> None:
    q, k = (_stretches(n, block) for n in mask.shape[-2:])
    some, every = pattern.overlap(q[:, :1], q[:, 1:], k[:, 0], k[:, 1])
    for i, (q0, q1) in enumerate(q.tolist()):
        for j, (k0, k1) in enumerate(k.tolist()):
            piece = mask[..., q0 : q1 + 1, k0 : k1 + 1]
            where = f"queries {q0}..{q1}, keys {k0}..{k1}"
            lost = piece.any(-1).any(-1) & ~some[..., i, j]
            expect(not bool(lost.any()), f"overlap: any is False but pairs exist, {where}")
            holes = every[..., i, j] & ~piece.all(-1).all(-1)
            expect(not bool(holes.any()), f"overlap: all is True but pairs are missing, {where}")


def _stretches(length: int, block: int) -> Tensor:
    """(first, last) of consecutive stretches: (num_stretches, 2)."""
    first = torch.arange(0, length, block, device="cpu")
    return torch.stack([first, (first + block - 1).clamp(max=max(0, length - 1))], dim=1)


def _check_decoding(pattern: Pattern, mask: Tensor) -> None:
    length = len(mask)
    expect(not bool(mask.triu(1).any()), "a causal pattern reads a later key")
    bounds = pattern.horizon()
    for position in range(length):
        row = mask[position].nonzero()[:, 0]
        if bounds is not None:
            recent = row > position - bounds[1]
            expect(bool((recent | (row < bounds[0])).all()), f"horizon misses keys of {position}")
        reads = pattern.reads(position)
        expect(
            torch.equal(reads, row),
            f"reads({position}) is {reads.tolist()}, the mask has {row.tolist()}",
        )
        needed = set(mask[position + 1 :, : position + 1].any(0).nonzero()[:, 0].tolist())
        kept = set(torch.as_tensor(pattern.keeps(position), device="cpu").tolist())
        lost, unknown = needed - kept, kept - set(range(position + 1))
        expect(not lost, f"keeps({position}) forgets {sorted(lost)}")
        expect(not unknown, f"keeps({position}) names {sorted(unknown)}, which are not there yet")
