"""attend() over a sequence that lies on many ranks: each fetches the keys that its queries read.

The local call is an ordinary one, of a part of the pattern over the keys that are here. Its
backward pass hands the gradients of foreign keys and values back the way they came.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foveal.ops import attend as attend_here
from foveal.ops.bias import Bias, WindowBias
from foveal.ops.checks import check_tensors
from foveal.ops.drop import ByPlace
from foveal.ops.offset import brought_near
from foveal.parallel import pooled
from foveal.parallel.moving import exchange
from foveal.parallel.ranks import Ranks, as_ranks
from foveal.parallel.shares import Share, borders_of, kept_by, lengths_of, share, spans_of
from foveal.patterns import Part, Pattern
from foveal.patterns.gathered import Gathered
from foveal.patterns.needs import Stretches, listed


@dataclass(frozen=True)
class Local:
    """A call as one rank makes it.

    pattern: of its queries over the keys that it has then.
    first: its first query.
    keys: which keys these are.
    share: how it comes by them.
    """

    pattern: Pattern
    first: int
    keys: Stretches
    share: Share


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    mesh: Any,
    *,
    bias: Bias | None = None,
    key_mask: Tensor | None = None,
    lengths: Sequence[int] | None = None,
    queries: Sequence[tuple[int, int]] | None = None,
    **options: Any,
) -> Any:
    """`foveal.attend` of the tokens of this rank, which read those of all ranks.

    The ranks hold consecutive parts of one sequence, in their order and of any lengths. They
    exchange the keys and values that the pattern reads across borders, and nothing else: once a
    call, and once in the backward pass.

    Args:
        q: (batch, heads, own tokens, head_dim); of a pattern that strides its queries, (batch,
            heads, own queries, head_dim), wherever these are cut.
        k, v: (batch, kv_heads, own tokens, head_dim or head_dim_v).
        pattern: of the whole sequence.
        mesh: the ranks: a DeviceMesh of one dimension such as mesh["cp"], or a process group.
        bias: a TableBias, `alibi(heads)`, a WindowBias of the own queries, or a tensor that
            broadcasts to (batch, heads, own tokens, tokens of all ranks).
        key_mask: (batch, own tokens) bool, True = real.
        lengths: tokens of every rank; None asks them, which is one small exchange more.
        queries: the queries [first, last) of every rank, where they are cut otherwise than the
            keys, or are those of another sequence; alike on all ranks.
        options: scale, dropout_p, impl, return_lse, sinks, softcap: see `foveal.attend`.

    Returns:
        what `foveal.attend` returns of the whole, cut to the own tokens.

    Raises:
        TypeError, ValueError: as `foveal.attend`; mesh is no group of ranks.

    Example:
        >>> from torch.distributed.device_mesh import init_device_mesh
        >>> mesh = init_device_mesh("cpu", (4,), mesh_dim_names=("cp",))  # doctest: +SKIP
        >>> out = foveal.parallel.attend(q, k, v, pattern, mesh["cp"])  # doctest: +SKIP
    """
    shaping = options.get("dropout_p", 0.0), options.get("return_lse", False), options.get("sinks")
    check_tensors(q, k, v, pattern, bias, key_mask, *shaping)
    ranks, dropout = as_ranks(mesh), options.get("dropout_p")
    if ranks.size == 1 and not isinstance(dropout, ByPlace):
        return attend_here(q, k, v, pattern, bias=bias, key_mask=key_mask, **options)
    sizes = lengths_of(ranks, k.shape[2], lengths)
    length = sum(sizes)
    pattern.check_length(length)
    if queries is None and not pattern.pools and pattern.num_queries(length) != length:
        queries = _asked(pattern, q.shape[2], length, ranks)
    count = k.shape[2] if queries is None else _own(queries, ranks)
    if not q.ndim == k.ndim == v.ndim == 4 or (q.shape[2], k.shape[2]) != (count, v.shape[2]):
        raise ValueError(
            "q, k and v must be (batch, heads, own tokens, head_dim) with as many tokens, got "
            f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}."
        )
    if pattern.pools and queries is None:
        return pooled.attend(q, k, v, pattern, ranks, sizes, bias, key_mask, options)  # type: ignore[arg-type]
    if pattern.pools:
        raise ValueError(f"queries of {pattern} are cut where its keys are; leave queries= out.")
    local = localize(pattern, sizes, ranks, queries)
    here = brought_near(local.pattern, bias)
    k, v, key_mask = _with_foreign(k, v, key_mask, local.share, ranks)
    bias = _over_keys(bias, pattern, local, length)
    if isinstance(dropout, ByPlace):
        places = torch.arange(local.first, local.first + count, device="cpu")
        options |= {"dropout_p": dropout.at(places, listed(local.keys)), "impl": "tiled"}
    return attend_here(q, k, v, here, bias=bias, key_mask=key_mask, **options)


def localize(
    pattern: Pattern,
    sizes: tuple[int, ...],
    ranks: Ranks,
    queries: Sequence[tuple[int, int]] | None = None,
) -> Local:
    """The call of this rank, which is kept: layers and steps alike ask for it."""
    spans = None if queries is None else tuple(queries)
    kept, key = kept_by(ranks), (pattern.cache_key(), sizes, spans)
    found: Local | None = kept.find(key)
    if found is None:
        borders = borders_of(sizes)
        first, last = (spans or spans_of(sizes))[ranks.rank]
        needs = pattern.needs(first, last, borders[-1])
        shared = share(needs, borders, ranks)
        own = part(pattern, first, last, borders[-1], needs)
        found = Local(own, first, needs, shared)
        kept.keep(key, found)
    return found


def _asked(pattern: Pattern, own: int, length: int, ranks: Ranks) -> list[tuple[int, int]]:
    """The queries of every rank, of a pattern that has fewer of them than keys."""
    counts = lengths_of(ranks, own)
    pattern.check_lengths(sum(counts), length)
    return spans_of(counts)


def _own(queries: Sequence[tuple[int, int]], ranks: Ranks) -> int:
    """Queries of this rank."""
    first, last = queries[ranks.rank]
    return last - first


def part(pattern: Pattern, first: int, last: int, length: int, keys: Stretches) -> Pattern:
    """Queries [first, last) of a pattern over these runs of keys."""
    plain = len(keys) == 1 and pattern.num_queries(length) == length
    if plain and pattern.takes_length(keys[0][1]):
        return Part(pattern, first, last - first, keys[0][0])
    return Gathered(pattern, first, last - first, keys, length)


def _over_keys(bias: Bias | None, pattern: Pattern, local: Local, length: int) -> Bias | None:
    """What of a bias falls on the keys that are here; rules and tables stay as they are."""
    if isinstance(bias, WindowBias):
        parts = [bias.dense(pattern, b - a, local.first, a) for a, b in local.keys]  # type: ignore[arg-type]
        return torch.cat(parts, -1)
    if isinstance(bias, Tensor) and bias.shape[-1] == length > 1:
        return bias[..., listed(local.keys).to(bias.device)]
    return bias


def _with_foreign(
    k: Tensor, v: Tensor, key_mask: Tensor | None, shared: Share, ranks: Ranks
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys, values and their mask as this rank's queries read them, in the order of tokens."""
    device = k.device
    own = None if shared.whole else shared.own.to(device)
    foreign = _fetch(k, v, key_mask, shared, ranks)

    def joined(x: Tensor, found: Tensor, dim: int) -> Tensor:
        mine = x if own is None else x.index_select(dim, own)
        # even where nothing came: the ranks that sent something wait for this one's gradient
        before, after = found.tensor_split([shared.before], dim)
        return torch.cat([before, mine, after], dim)

    mask = None if key_mask is None else joined(key_mask, foreign[2], 1)
    return joined(k, foreign[0], 2), joined(v, foreign[1], 2), mask


def _fetch(
    k: Tensor, v: Tensor, key_mask: Tensor | None, shared: Share, ranks: Ranks
) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values and mask of the tokens that come from other ranks, in one exchange."""
    send = shared.send.to(k.device)
    parts = [x.index_select(2, send).permute(2, 0, 1, 3) for x in (k, v)]
    if key_mask is not None:
        parts.append(key_mask.index_select(1, send).T[:, :, None, None].to(k.dtype))
    rows = torch.cat([part.flatten(1) for part in parts], 1)
    found = exchange(rows, ranks, shared.sent, shared.received)
    widths = [math.prod(part.shape[1:]) for part in parts]
    pieces = found.split(widths, 1)
    keys, values = (
        piece.unflatten(1, part.shape[1:]).permute(1, 2, 0, 3)
        for piece, part in zip(pieces[:2], parts[:2], strict=True)
    )
    mask = pieces[2].T.bool() if key_mask is not None else keys[:, 0, :, 0]
    return keys, values, mask
