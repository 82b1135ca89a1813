"""Models over a part of a sequence: each layer reads what it needs of the other parts."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn

from foveal.layers import CrossAttention, SelfAttention
from foveal.layers.packing import Context
from foveal.layers.residual import ResidualStack
from foveal.models.causal import CausalLM
from foveal.parallel.attend import attend
from foveal.parallel.ranks import Ranks, as_ranks
from foveal.parallel.shares import lengths_of


class Shards(Context):
    """What stands in the place of a mask where a rank has a part of every row.

    Args:
        ranks: who has the others.
        lengths: tokens of each rank.
        mask: (batch, own tokens) bool, True = real; None for all.
    """

    def __init__(self, ranks: Ranks, lengths: tuple[int, ...], mask: Tensor | None) -> None:
        self.mask, self.lengths = mask, lengths
        self.attend = functools.partial(attend, mesh=ranks, lengths=lengths)
        self._first = sum(lengths[: ranks.rank])

    def turn(self, positions: Any) -> Any:
        """Rotary positions that count from the first token of the whole."""
        first = self._first
        return lambda x, offset=0, stride=1: positions(x, offset + first * stride, stride)


def shard_sequence(model: nn.Module, mesh: Any) -> nn.Module:
    """Let every forward pass of a model take this rank's part of the tokens, and give its logits.

    The parts follow each other by rank and may differ in length. Decoding stays what it is: a rank
    that prefills or generates takes whole prompts. Gradients of weights are those of the own
    tokens: add them up over the ranks, as data-parallel training does (DistributedDataParallel
    averages: multiply the loss by the number of ranks).

    Args:
        model: a TransformerLM or HTransformer1D, as it is: nothing is copied.
        mesh: the ranks: a DeviceMesh of one dimension such as mesh["cp"], or a process group.

    Returns:
        the model.

    Raises:
        TypeError: mesh is no group of ranks.
        ValueError: a model with layers that read tokens in another way than by a pattern.
    """
    ranks = as_ranks(mesh)
    body = getattr(model, "transformer", None)
    if not isinstance(model, CausalLM) or not isinstance(body, ResidualStack):
        raise ValueError(
            "shard_sequence takes a TransformerLM or a HTransformer1D, got "
            f"{type(model).__name__}; in a model of your own, call foveal.parallel.attend."
        )
    _check(body)
    if getattr(body, "_sharded", False):
        raise ValueError("this model is sharded already; shard_sequence is called once.")
    most = model.max_seq_len

    def enter(_: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        x, *rest = args
        mask = rest[0] if rest else given.get("mask")
        if isinstance(mask, Context):
            raise ValueError("a row is either packed with documents or shared by ranks, not both.")
        lengths = lengths_of(ranks, x.shape[1])
        if sum(lengths) > most:
            raise ValueError(
                f"at most max_seq_len={most} tokens on all ranks, got {sum(lengths)}: {lengths}."
            )
        rest = [Shards(ranks, lengths, mask), *rest[1:]]
        return (x, *rest), {name: value for name, value in given.items() if name != "mask"}

    body.register_forward_pre_hook(enter, with_kwargs=True)
    body._sharded = True  # type: ignore[assignment]
    return model


def _check(body: ResidualStack) -> None:
    """Raise ValueError where a layer reads tokens in another way than by a pattern."""
    branches = [branch for block in body.blocks for branch in block.branches]
    for branch in branches:
        attention = branch.inner if branch.kind == "attn" else None
        reason = None
        if branch.shift is not None:
            reason = "shifts features from token to token"
        elif branch.kind == "cross" or isinstance(branch.inner, CrossAttention):
            reason = "reads a memory beside the sequence"
        elif attention is not None and not isinstance(attention, SelfAttention):
            reason = f"has a layer of another kind, {type(attention).__name__}"
        elif attention is not None and attention.relative is not None:
            reason = "has relative positions, which count the rows of a batch"
        if reason is not None:
            raise ValueError(f"shard_sequence cannot cut this model, which {reason}.")
