"""Models over a part of a sequence: each layer reads what it needs of the other parts."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from foveal.common.checks import as_int
from foveal.layers import CrossAttention, SelfAttention
from foveal.layers.packing import Context
from foveal.layers.residual import Branch, ResidualStack
from foveal.models.base import Model
from foveal.models.causal import CausalLM
from foveal.models.dalle import DALLE
from foveal.models.hourglass import HourglassTransformer
from foveal.parallel.attend import attend
from foveal.parallel.fetch import rows_of, spans_of
from foveal.parallel.ranks import Ranks, as_ranks
from foveal.parallel.shares import cut_evenly, lengths_of


class Shards(Context):
    """What stands in the place of a mask where a rank has a part of every row.

    Args:
        ranks: who has the others.
        lengths: tokens of each rank.
        mask: (batch, own tokens) bool, True = real; None for all.
    """

    def __init__(self, ranks: Ranks, lengths: Sequence[int], mask: Tensor | None) -> None:
        self.mask, self.lengths, self.ranks = mask, tuple(lengths), ranks
        self.attend = functools.partial(attend, mesh=ranks, lengths=self.lengths)
        self.spans, self.length = spans_of(lengths), sum(lengths)
        self.part, self.first = ranks.rank, self.spans[ranks.rank][0]

    def turn(self, positions: Any) -> Any:
        """Rotary positions that count from the first token of the whole."""
        first = self.first
        return lambda x, offset=0, stride=1: positions(x, offset + first * stride, stride)

    def rows(self, x: Tensor, wanted: Sequence[tuple[int, int]]) -> Tensor:
        return rows_of(x, wanted, self.ranks, self.lengths, 1)

    def coarser(self, factor: int, mask: Tensor | None) -> Shards:
        """A coarse token is where its fine one is: c at c * factor."""
        spans = [(-(-a // factor), -(-b // factor)) for a, b in self.spans]
        return Shards(self.ranks, [b - a for a, b in spans], mask)

    def agreed(self, x: Tensor) -> Tensor:
        return agreed(x, self.ranks)


def agreed(x: Tensor, ranks: Ranks) -> Tensor:
    """What the first rank says, of small numbers of any shape."""
    rows = x.reshape(1, -1).to(ranks.device or x.device)
    return ranks.gather(rows, [1] * ranks.size)[0].reshape(x.shape).to(x.device)


class Sharing:
    """With whom a model shares its sequence: `Model.sharing`, which the model asks for contexts.

    Args:
        ranks: who has parts of it.
        align: where a model cuts the sequence itself, parts begin at multiples of this.
    """

    def __init__(self, ranks: Ranks, align: int = 1) -> None:
        self.ranks, self.align = ranks, align

    def __deepcopy__(self, _: Any) -> Sharing:
        return self  # a copy of the model has the same ranks, which nothing copies

    def of_part(self, model: Model, own: int, mask: Tensor | None) -> Shards:
        """The context of `own` tokens of this rank.

        Raises:
            ValueError: there are more on all ranks than the model takes, or dropout is on.
        """
        check_dropout(model)
        lengths = lengths_of(self.ranks, own)
        if sum(lengths) > model.max_seq_len:
            raise ValueError(
                f"at most max_seq_len={model.max_seq_len} tokens on all ranks, got "
                f"{sum(lengths)}: {lengths}."
            )
        return Shards(self.ranks, lengths, mask)

    def of_whole(self, model: Model, length: int) -> Shards:
        """The context of this rank's part of a sequence that all of them know.

        Raises:
            ValueError: dropout is on.
        """
        check_dropout(model)
        return Shards(self.ranks, cut_evenly(length, self.ranks.size, self.align), None)

    def agreed(self, x: Tensor) -> Tensor:
        """As that of a context."""
        return agreed(x, self.ranks)


def check_dropout(model: nn.Module) -> None:
    """Raise ValueError where a pass would drop something: the ranks would draw as they like."""
    if not model.training:
        return
    for name, module in model.named_modules():
        rate = module.p if isinstance(module, nn.Dropout) else getattr(module, "dropout", 0.0)
        if isinstance(rate, float) and rate > 0 and module.training:
            raise ValueError(
                f"dropout depends on the number of ranks that share a sequence, got {rate} in "
                f"{name}; train with dropout=0, or each sequence on one rank."
            )


def shard_sequence(model: nn.Module, mesh: Any, align: int = 1) -> nn.Module:
    """Let every forward pass of a model take this rank's part of the tokens, and give its logits.

    A DALLE takes the whole text and picture, which are but numbers, and cuts them itself: it gives
    the logits of its part, or with return_loss=True the part of the loss.

    The parts follow each other by rank and may differ in length. Decoding stays what it is: a rank
    that prefills or generates takes whole prompts. Gradients of weights are those of the own
    tokens: add them up over the ranks, as data-parallel training does (DistributedDataParallel
    averages: multiply the loss by the number of ranks).

    Args:
        model: a TransformerLM, HTransformer1D, HourglassTransformerLM or DALLE, as it is: nothing
            is copied.
        mesh: the ranks: a DeviceMesh of one dimension such as mesh["cp"], or a process group.
        align: parts of a DALLE begin at multiples of so many tokens, as in `take`.

    Returns:
        the model.

    Raises:
        TypeError: mesh is no group of ranks.
        ValueError: a model with layers that read tokens in another way than by a pattern. Later,
            a pass that would drop something in training: train with dropout=0.
    """
    ranks = as_ranks(mesh)
    body = getattr(model, "transformer", None)
    if not isinstance(model, CausalLM | DALLE) or not isinstance(body, nn.Module):
        raise ValueError(
            "shard_sequence takes a TransformerLM, HTransformer1D, HourglassTransformerLM or "
            f"DALLE, got {type(model).__name__}; in a model of your own, call "
            "foveal.parallel.attend."
        )
    reason = why_not(body)
    if reason is not None:
        raise ValueError(f"shard_sequence cannot cut this model, which {reason}.")
    if model.sharing is not None:
        raise ValueError("this model is sharded already; shard_sequence is called once.")
    model.sharing = Sharing(ranks, as_int("align", align, 1))
    return model


def why_not(body: nn.Module) -> str | None:
    """How a layer reads tokens that no rank could hand to it."""
    for stage in _stages(body):
        if not isinstance(stage, ResidualStack):
            return f"computes as another package does, by {type(stage).__name__}"
        for branch in (branch for block in stage.blocks for branch in block.branches):
            reason = _why_not_branch(branch)
            if reason is not None:
                return reason
    return None


def _stages(body: nn.Module) -> Iterator[nn.Module]:
    """The stacks of a hierarchy; of one that is unknown, itself."""
    if type(body) is HourglassTransformer:
        for part in (body.pre_transformer, body.valley_transformer, body.post_transformer):
            yield from _stages(part)
    else:
        yield body


def _why_not_branch(branch: Branch) -> str | None:
    if branch.kind == "cross" or isinstance(branch.inner, CrossAttention):
        return "reads a memory beside the sequence"
    if branch.kind == "attn" and not isinstance(branch.inner, SelfAttention):
        return f"has a layer of another kind, {type(branch.inner).__name__}"
    return None
