"""Which implementation computes a call, and why.

FOVEAL_IMPL in the environment names an implementation to prefer wherever it can do the call.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from foveal.common.memo import remember
from foveal.ops.checks import check_sizes
from foveal.ops.costs import dense_pairs, may_be_native, seconds, visited_pairs
from foveal.ops.dense import MOST_PAIRS, is_causal_or_all, written_out
from foveal.ops.implementations import IMPLEMENTATIONS
from foveal.ops.trust import ask_once
from foveal.ops.work import Work
from foveal.patterns import Full
from foveal.patterns.subclasses import is_a

IMPLS = tuple(IMPLEMENTATIONS)
SHORT = 64
"""Up to so many tokens are one tile."""


class Choice(NamedTuple):
    """An implementation, and why it is the one, in one sentence."""

    name: str
    reason: str


def pick(work: Work, compiled: bool = True) -> Choice:
    """The implementation that computes a call: the best of those that do not refuse it.

    Args:
        compiled: ask also whether it compiles and is right here, which may compile it.

    Raises:
        ValueError: a size does not fit the others; FOVEAL_IMPL names no implementation.
    """
    if work.dropout and not work.compiling:
        # what runs without gradients may run again with them, and has to drop the same then
        work = work._replace(requires_grad=True, bias_grad=work.bias is not None)
    order = ranking_of_symbols(work) if work.compiling else ranking(work)
    wanted = None if work.device.type == "meta" else forced()
    if wanted and IMPLEMENTATIONS[wanted].refuses(work) is None:
        return Choice(wanted, "FOVEAL_IMPL names it, for calls that it can do")
    for choice in order:
        one = IMPLEMENTATIONS[choice.name]
        if one.refuses(work) is None and (not compiled or one.ready(work)):
            return choice
    return Choice("reference", "nothing else can do this call")


def is_settled(work: Work, name: str) -> bool:
    """Whether the choice is the best or a demanded one: others stand in while a compiler lacks."""
    return name in (ranking(work)[0].name, forced())


@remember(entries=4096, key=Work.cache_key)
def ranking(work: Work) -> tuple[Choice, ...]:
    """The implementations worth trying for a call, the best first; its sizes are checked."""
    check_sizes(work)
    if work.pattern.pools:
        return _pooled(work)
    if work.bias == "window":
        return _windowed(work)
    if not work.square:
        return (Choice("dense", f"no tile plan serves {work.lengths}"),)
    if work.pattern.keeps_apart and work.device.type != "cuda":
        why = "tiles hold no tokens of two documents, so that nothing passes between them"
        return *_tiles(why), Choice("dense", "")
    if work.device.type == "meta":
        return _tiles("nothing is computed, and its operations count by the pairs of the pattern")
    tiles = _tiles("the tile plan is the fastest that can do this call")
    if work.q[2] <= SHORT and work.k[2] <= SHORT:
        dense = Choice("dense", f"{work.k[2]} tokens are one tile")
        if (work.sinks or work.softcap) and work.device.type == "cpu":
            return tiles[0], dense, tiles[1]  # SDPA knows neither, and the kernel is short
        return dense, *tiles
    if work.device.type == "cuda":
        return _on_cuda(work)
    return _by_seconds(work)


def ranking_of_symbols(work: Work) -> tuple[Choice, ...]:
    """The same while a graph is traced: lengths may be symbols, and estimates are none."""
    if work.pattern.pools:
        return _pooled(work)
    if work.bias == "window":
        return _windowed(work)
    if not work.square:
        return (Choice("dense", "no tile plan serves this number of queries"),)
    tiles = _tiles("the operator plans when the lengths are known")
    if work.exporting:  # an exported program must run where there is no compiler
        tiles = tiles[1:]
    dense = is_a(work.pattern, Full) and (work.plain or not work.pattern.causal)
    if dense and not work.softcap:
        return Choice("dense", "the pattern is dense attention"), *tiles
    return *tiles, Choice("dense", "")


def _tiles(reason: str) -> tuple[Choice, ...]:
    return Choice("native", reason), Choice("tiled", reason)


def _pooled(work: Work) -> tuple[Choice, ...]:
    tiles = _tiles("keys are pooled into levels, which only a tile plan knows")
    if work.exporting:
        return tiles[1:]
    if work.device.type != "cuda" or work.compiling:
        return tiles
    why = "a compiled block-sparse kernel over the pooled levels side by side"
    return Choice("flex", why), *tiles


def _windowed(work: Work) -> tuple[Choice, ...]:
    why = "relative positions are added inside its tiles"
    tiles = _tiles(why)
    if work.device.type == "cuda" and not work.exporting:
        return Choice("triton", f"a kernel for halo attention on CUDA; {why}"), *tiles
    return tiles[1:] if work.exporting else tiles


def _on_cuda(work: Work) -> tuple[Choice, ...]:
    tiled = Choice("tiled", _share(work))
    if is_a(work.pattern, Full) and work.plain:
        return Choice("dense", "the pattern is dense attention"), tiled
    if work.k[2] >= 1024:
        return Choice("flex", "a compiled block-sparse kernel on CUDA"), tiled
    return _by_seconds(work)


def _by_seconds(work: Work) -> tuple[Choice, ...]:
    """In the order of the estimates; what would write out too many numbers comes last."""
    names = ["dense", "native", "tiled"]
    full = is_a(work.pattern, Full)
    if full and work.plain:
        names = ["dense", "native", "tiled"] if may_be_native(work) else ["dense"]
    taken = {name: seconds(work, name) for name in names}
    bulky = written_out(work) > MOST_PAIRS and not (work.plain and is_causal_or_all(work))
    order = sorted(names, key=lambda name: (bulky and name == "dense", taken[name]))
    share = "the pattern is dense attention" if full else _share(work)

    def why(name: str) -> str:
        if name == "dense":
            return share if full else f"{share}: one dense kernel is faster at this length"
        if bulky:
            return f"{share}; dense attention would write out {written_out(work):,} numbers"
        return f"{share}, estimated {taken['dense'] / taken[name]:.1f} times dense speed"

    found = [Choice(name, why(name)) for name in order]
    if names == ["dense"]:  # where it refuses
        found += _tiles(share)
    return tuple(found)


def _share(work: Work) -> str:
    visited = visited_pairs(work.pattern, work.q[2], work.k[2])
    return f"{visited:,} of {dense_pairs(work):,} pairs visited"


@ask_once
def forced() -> str | None:
    """The implementation that FOVEAL_IMPL names, or None.

    Raises:
        ValueError: there is no such implementation.
    """
    name = os.environ.get("FOVEAL_IMPL")
    if name and name not in IMPLS:
        raise ValueError(f"FOVEAL_IMPL must be one of {', '.join(IMPLS)} or empty, got {name!r}.")
    return name or None
