"""Models over a part of a sequence: each layer reads what it needs of the other parts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from foveal.common import by_example
from foveal.common.checks import as_int
from foveal.common.hashing import mixed
from foveal.layers import CrossAttention, SelfAttention
from foveal.layers.dropout import drawing, drawing_part, place_dropout
from foveal.layers.packing import Context
from foveal.layers.residual import Branch, ResidualStack
from foveal.models.base import Model
from foveal.models.causal import CausalLM
from foveal.models.dalle import DALLE
from foveal.models.hourglass import HourglassTransformer
from foveal.ops.drop import ByPlace, kept
from foveal.parallel.attend import attend
from foveal.parallel.fetch import rows_of
from foveal.parallel.moving import agreed
from foveal.parallel.ranks import Ranks, as_ranks
from foveal.parallel.shares import cut_evenly, lengths_of, spans_of
from foveal.patterns import Pattern


class Shards(Context):
    """What stands in the place of a mask where a rank has a part of every row.

    Args:
        ranks: who has the others.
        lengths: tokens of each rank.
        mask: (batch, own tokens) bool, True = real; None for all.
        seed: of what is dropped, one or one for each example (examples,); None where nothing is.
    """

    def __init__(
        self,
        ranks: Ranks,
        lengths: Sequence[int],
        mask: Tensor | None,
        seed: Tensor | None = None,
    ) -> None:
        self.mask, self.lengths, self.ranks, self.seed = mask, tuple(lengths), ranks, seed
        self.spans, self.length = spans_of(lengths), sum(lengths)
        self.part, self.first = ranks.rank, self.spans[ranks.rank][0]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, **options: Any) -> Any:
        """`foveal.parallel.attend` among these ranks."""
        rate = options.get("dropout_p")
        if isinstance(rate, ByPlace):
            options["dropout_p"] = self._placed(rate, q.shape[0])
        return attend(q, k, v, pattern, self.ranks, lengths=self.lengths, **options)

    def _placed(self, rate: ByPlace, rows: int) -> float:
        if self.seed is None:
            return float(rate)
        return ByPlace.of(rate, seed=_of_rows(self.seed, rows, rate.number))

    def drawing(self, part: nn.Module | None = None) -> contextlib.AbstractContextManager[None]:
        if self.seed is None:
            return contextlib.nullcontext()
        return drawing(self._dropped, getattr(part, "dropout_number", 0))

    def _dropped(self, rate: float, number: int, x: Tensor) -> Tensor:
        """x (batch, own tokens, features) without what these places lose."""
        assert self.seed is not None
        places = self.places(x.shape[1], x.device)
        features = torch.arange(x.shape[2], device=x.device)
        seeds = _of_rows(self.seed, x.shape[0], number).to(x.device)
        words = mixed(mixed(seeds[:, None], places)[..., None], features)
        return torch.where(kept(rate, words), x / (1 - rate), 0.0)

    def turn(self, positions: Any) -> Any:
        """Rotary positions that count from the first token of the whole."""
        first = self.first
        return lambda x, offset=0, stride=1: positions(x, offset + first * stride, stride)

    def rows(self, x: Tensor, wanted: Sequence[tuple[int, int]]) -> Tensor:
        return rows_of(x, wanted, self.ranks, self.lengths, 1)

    def coarser(self, factor: int, mask: Tensor | None) -> Shards:
        """A coarse token is where its fine one is: c at c * factor."""
        spans = [(-(-a // factor), -(-b // factor)) for a, b in self.spans]
        return Shards(self.ranks, [b - a for a, b in spans], mask, self.seed)

    def agreed(self, x: Tensor) -> Tensor:
        return agreed(x, self.ranks)


def _of_rows(seeds: Tensor, count: int, number: int) -> Tensor:
    """Of a layer, for each of `count` rows, several to an example side by side: (count,)."""
    each, rest = divmod(count, len(seeds))
    if rest:  # no rows of these examples
        seeds, each = seeds[:1], count
    own = torch.arange(count, device="cpu") % each
    return mixed(mixed(seeds, drawing_part(), number).repeat_interleave(each), own)


class Sharing:
    """With whom a model shares its sequence: `Model.sharing`, which the model asks for contexts.

    Args:
        ranks: who has parts of it.
        align: where a model cuts the sequence itself, parts begin at multiples of this.
        drops: whether the model has dropout.
    """

    def __init__(self, ranks: Ranks, align: int = 1, drops: bool = False) -> None:
        self.ranks, self.align, self.drops = ranks, align, drops

    def __deepcopy__(self, _: Any) -> Sharing:
        return self  # a copy of the model has the same ranks, which nothing copies

    def of_part(self, model: Model, own: int, mask: Tensor | None) -> Shards:
        """The context of `own` tokens of this rank.

        Raises:
            ValueError: there are more on all ranks than the model takes.
        """
        lengths = lengths_of(self.ranks, own)
        if sum(lengths) > model.max_seq_len:
            raise ValueError(
                f"at most max_seq_len={model.max_seq_len} tokens on all ranks, got "
                f"{sum(lengths)}: {lengths}."
            )
        return Shards(self.ranks, lengths, mask, self._seed(model))

    def of_whole(self, model: Model, length: int) -> Shards:
        """The context of this rank's part of a sequence that all of them know."""
        lengths = cut_evenly(length, self.ranks.size, self.align)
        return Shards(self.ranks, lengths, None, self._seed(model))

    def _seed(self, model: Model) -> Tensor | None:
        """Of what a pass drops: in a training of each example, else one that the first rank draws.

        None where nothing is dropped.
        """
        if not (model.training and self.drops):
            return None
        drawn = torch.zeros(1, dtype=torch.int64, device="cpu")
        if self.ranks.rank == 0 or by_example.is_active():  # each rank counts its calls
            drawn = by_example.seeds()
        return agreed(drawn, self.ranks)

    def agreed(self, x: Tensor) -> Tensor:
        """As that of a context."""
        return agreed(x, self.ranks)


def shard_sequence(model: nn.Module, mesh: Any, align: int = 1) -> nn.Module:
    """Let every forward pass of a model take this rank's part of the tokens, and give its logits.

    A DALLE takes the whole text and picture, which are but numbers, and cuts them itself: it gives
    the logits of its part, or with return_loss=True the part of the loss.

    The parts follow each other by rank and may differ in length. Decoding stays what it is: a rank
    that prefills or generates takes whole prompts. Gradients of weights are those of the own
    tokens: add them up over the ranks, as data-parallel training does (DistributedDataParallel
    averages: multiply the loss by the number of ranks).

    Dropout draws by place from now on: a token loses the same on any number of ranks. In a
    training that is decided by its example, however many ranks share the batch; elsewhere by a
    seed that the first rank draws anew in each pass.

    Args:
        model: a TransformerLM, HTransformer1D, HourglassTransformerLM or DALLE, as it is: nothing
            is copied.
        mesh: the ranks: a DeviceMesh of one dimension such as mesh["cp"], or a process group.
        align: parts of a DALLE begin at multiples of so many tokens, as in `take`.

    Returns:
        the model.

    Raises:
        TypeError: mesh is no group of ranks.
        ValueError: a model with layers that read tokens in another way than by a pattern.
    """
    ranks = as_ranks(mesh)
    body = getattr(model, "transformer", None)
    if not isinstance(model, CausalLM | DALLE) or not isinstance(body, nn.Module):
        raise ValueError(
            "shard_sequence takes a TransformerLM, HTransformer1D, HourglassTransformerLM or "
            f"DALLE, got {type(model).__name__}; image models are for shard_rows, and in a model "
            "of your own, call foveal.parallel.attend."
        )
    reason = why_not(body)
    if reason is not None:
        raise ValueError(f"shard_sequence cannot cut this model, which {reason}.")
    if model.sharing is not None:
        raise ValueError("this model is sharded already; shard_sequence is called once.")
    model.sharing = Sharing(ranks, as_int("align", align, 1), place_dropout(model))
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
