"""A prompt that lies on many ranks is read by all of them; one goes on writing.

What decoding can still read is little where patterns are bounded: the last keys of a window, a few
summaries of a pyramid. Each rank hands its share of that to the one that goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from foveal.caches import DecodingState
from foveal.caches.handed import Slot, slots_of
from foveal.layers.residual import ResidualStack
from foveal.models.causal import CausalLM
from foveal.parallel.model import Shards, why_not
from foveal.parallel.ranks import Ranks, as_ranks
from foveal.parallel.shares import lengths_of
from foveal.patterns import Pattern


@torch.no_grad()
def prefill(
    model: nn.Module,
    tokens: Tensor,
    mesh: Any,
    *,
    to: int = 0,
    max_length: int | None = None,
) -> tuple[Tensor, DecodingState] | tuple[None, None]:
    """`model.prefill` of a prompt that lies on many ranks, so that one of them can go on.

    The ranks hold consecutive parts of the prompt, in their order and of any lengths. Beside what
    the layers exchange in a forward pass, one exchange brings what the caches keep to rank `to`,
    where `model.step` goes on, or `foveal.generation.generate` with `foveal.generation.Continued`.

    Args:
        model: a causal TransformerLM or HTransformer1D, sharded by `shard_sequence` or not.
        tokens: (batch, own tokens) int.
        mesh: the ranks: a DeviceMesh of one dimension such as mesh["cp"], or a process group.
        to: the rank that goes on.
        max_length: most tokens that will come, prompt included; None lets the state grow.

    Returns:
        logits (batch, num_tokens) of the last position of all, and the state that `step`
        continues, on rank `to`; None and None on the others.

    Raises:
        TypeError: mesh is no group of ranks.
        ValueError: another model, an empty or too long prompt, or no such rank.

    Example:
        >>> import torch
        >>> import foveal
        >>> from foveal import parallel
        >>> from foveal import patterns as P
        >>> model = foveal.TransformerLM(dim=16, depth=1, heads=2, pattern=P.SlidingWindow(8))
        >>> prompt = torch.arange(100)[None]
        >>> def act(rank):
        ...     return parallel.prefill(model.eval(), parallel.take(prompt, rank), rank)
        >>> (logits, state), (nothing, _) = parallel.simulate(2, act)
        >>> logits.shape, state.position, nothing
        (torch.Size([1, 256]), 100, None)
    """
    ranks, model = as_ranks(mesh), _checked(model)
    lengths = lengths_of(ranks, tokens.shape[1])
    _check(sum(lengths), model.max_seq_len, max_length, to, ranks)
    # the others need not hold what they hand over
    state = model.make_cache(len(tokens), max_length, None if ranks.rank == to else "meta")
    reading = _Reading(ranks, lengths, slots_of(state))
    x = model._body(model._embed(tokens, reading.first), reading)
    parts = _handed(reading, x, to)
    if parts is None:
        return None, None
    for number, (slot, _) in enumerate(reading.given):
        slot.fill([one[number].to(slot.dtype) for one in parts], reading.spans, reading.length)
    state.position = reading.length
    last = next(one[-1] for one in parts if len(one[-1]))
    return model._logits(last.to(x.dtype).view(len(x), -1)), state


def _handed(reading: _Reading, x: Tensor, to: int) -> list[tuple[Tensor, ...]] | None:
    """What each rank gives for each slot, and of the last features x (batch, tokens, dim), on
    rank `to`; None on the others."""
    ranks, length = reading.ranks, reading.length
    pieces, last = [piece for _, piece in reading.given], x[:, -1:].flatten()
    pieces.append(last if _ends(reading.span, length) else last[:0])
    dtype = reduce(torch.promote_types, [piece.dtype for piece in pieces])
    rows = torch.cat([piece.to(dtype) for piece in pieces])
    sizes = [
        [slot.count(span, length) for slot, _ in reading.given]
        + [len(x) * x.shape[-1] if _ends(span, length) else 0]
        for span in reading.spans
    ]
    sent = [len(rows) if rank == to else 0 for rank in range(ranks.size)]
    received = [sum(one) if ranks.rank == to else 0 for one in sizes]
    found = ranks.exchange(rows, sent, received)
    if ranks.rank != to:
        return None
    of_ranks = zip(found.split(received), sizes, strict=True)
    return [part.split(size) for part, size in of_ranks]


def _check(length: int, most: int, max_length: int | None, to: int, ranks: Ranks) -> None:
    if not 0 <= to < ranks.size:
        raise ValueError(f"to must name one of {ranks.size} ranks, from 0 on, got {to=}.")
    if not 1 <= length <= most:
        raise ValueError(
            f"the prompt must have from 1 to max_seq_len={most} tokens on all ranks, got {length}."
        )
    if max_length is not None and length > max_length:
        raise ValueError(f"max_length must hold the prompt of {length} tokens, got {max_length=}.")


def _checked(model: nn.Module) -> CausalLM:
    """The model.

    Raises:
        ValueError: a model whose caches are not those of a plain stack.
    """
    body = getattr(model, "transformer", None)
    reason = None
    if not isinstance(model, CausalLM) or not isinstance(body, ResidualStack):
        reason = f"is a {type(model).__name__}"
    else:
        reason = why_not(body)
        if any(getattr(part, "relative", None) is not None for part in body.modules()):
            reason = "has relative positions"
    if reason is not None:
        raise ValueError(
            "parallel.prefill takes a causal TransformerLM or HTransformer1D, but the model "
            f"{reason}; prefill the whole prompt on one rank: model.prefill(tokens)."
        )
    assert isinstance(model, CausalLM)
    return model


class _Reading(Shards):
    """Where tokens are while a prompt is read: layers call it, and their caches take a share.

    Args:
        slots: of the caches, in the order in which layers call.

    Attributes:
        given: what this rank hands over for each slot, in order.
    """

    def __init__(self, ranks: Ranks, lengths: Sequence[int], slots: Iterator[Slot]) -> None:
        super().__init__(ranks, lengths, None)
        self.given: list[tuple[Slot, Tensor]] = []
        self._slots = slots

    @property
    def span(self) -> tuple[int, int]:
        """Places [first, last) of the own tokens."""
        return self.spans[self.part]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, **options: Any) -> Any:
        self._keep(q, k, v)
        return super().attend(q, k, v, pattern, **options)

    def rows(self, x: Tensor, wanted: Sequence[tuple[int, int]]) -> Tensor:
        self._keep(x)
        return super().rows(x, wanted)

    def _keep(self, *found: Tensor) -> None:
        slot = next(self._slots)
        self.given.append((slot, slot.give(self.span, self.length, *found)))


def _ends(span: tuple[int, int], length: int) -> bool:
    return span[0] < span[1] == length
