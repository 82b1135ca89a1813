"""What a rank's own tokens say about the loss of the whole sequence."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.common.dtypes import wide
from foveal.parallel.fetch import fetch
from foveal.parallel.moving import of_all
from foveal.parallel.ranks import as_ranks
from foveal.parallel.shares import lengths_of


def next_tokens(tokens: Tensor, mesh: Any, ignore_index: int = -100) -> Tensor:
    """What a language model must foretell: the token after each, which another rank may have.

    Ranks that know the whole batch need no exchange: they `take` their part of its targets.

    Args:
        tokens: (batch, own tokens) int.
        mesh: the ranks: mesh["cp"], or a process group.
        ignore_index: what stands behind the last token of all.

    Returns:
        (batch, own tokens) int.

    Raises:
        TypeError: mesh is no group of ranks.
        ValueError: tokens of another shape.

    Example:
        >>> import torch
        >>> from foveal import parallel
        >>> x = torch.arange(5)[None]
        >>> parallel.simulate(2, lambda rank: parallel.next_tokens(parallel.take(x, rank), rank))
        [tensor([[1, 2]]), tensor([[   3,    4, -100]])]
    """
    if tokens.ndim != 2 or tokens.is_floating_point():
        raise ValueError(
            f"tokens must be (batch, own tokens) of an int type, got shape {tuple(tokens.shape)} "
            f"of {tokens.dtype}."
        )
    ranks = as_ranks(mesh)
    lengths = lengths_of(ranks, tokens.shape[1])
    found = fetch(tokens, after=1, mesh=ranks, lengths=lengths)[:, 1:]
    last = sum(lengths) - 1 - sum(lengths[: ranks.rank])
    places = torch.arange(found.shape[1], device=found.device)
    return found.masked_fill(places == last, ignore_index)


def cross_entropy(logits: Tensor, targets: Tensor, mesh: Any, ignore_index: int = -100) -> Tensor:
    """This rank's part of the mean cross-entropy of all ranks' tokens: the parts add up to it.

    Its gradients are the rank's part of those of the mean: to be added up too, not averaged.

    Args:
        logits: (batch, own tokens, vocabulary).
        targets: (batch, own tokens) int64.
        mesh: the ranks: mesh["cp"], or a process group.
        ignore_index: targets that do not count, on all ranks.

    Returns:
        tensor (), in nats a token; in float32 at least.

    Raises:
        TypeError: mesh is no group of ranks.
        ValueError: shapes that do not fit.
    """
    if logits.ndim != 3 or targets.shape != logits.shape[:2]:
        raise ValueError(
            "logits must be (batch, own tokens, vocabulary) and targets (batch, own tokens), got "
            f"{tuple(logits.shape)} and {tuple(targets.shape)}."
        )
    ranks = as_ranks(mesh)
    count = of_all((targets != ignore_index).sum(), ranks).sum().clamp(min=1)
    options: Any = {"ignore_index": ignore_index, "reduction": "sum"}
    return F.cross_entropy(wide(logits).flatten(0, 1), targets.flatten(), **options) / count
