"""Residual branches, blocks of them, and stacks of blocks: one way for every transformer here.

A block lists its branches; a stack runs them, plainly, checkpointed or reversibly, and decodes.
The decoding state of a stack has a part for each branch that remembers something, in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from foveal.caches import DecodingState
from foveal.common.arguments import checked
from foveal.layers.checks import Device
from foveal.layers.dropout import Dropout
from foveal.layers.packing import Context
from foveal.layers.reversible import Half, reversible
from foveal.layers.token_shift import TokenShift
from foveal.layers.weights import device_of, state_dtype

Kind = Literal["attn", "cross", "ff"]


class Branch(NamedTuple):
    """One residual branch, x + scale * out(inner(shift(norm(x)))): a view of a block's modules.

    Attributes:
        kind: "attn" reads the sequence itself, "cross" a memory beside it, "ff" each token alone.
        norm, inner: what stands in front, and the attention or feed-forward.
        out: dropout, or the second norm of a sandwich.
        shift: hands features of neighbours to `inner`; None for none.
        scale: (dim,), None = 1.
    """

    kind: Kind
    norm: nn.Module
    inner: Any
    out: nn.Module
    shift: TokenShift | None = None
    scale: nn.Parameter | None = None

    def run(
        self,
        x: Tensor,
        mask: Tensor | Context | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """What it adds to x (batch, tokens, dim), without scale; others as in ResidualStack."""
        if isinstance(mask, Context):
            with mask.drawing(self.norm):
                return self._run(x, mask, memory, memory_mask)
        return self._run(x, mask, memory, memory_mask)

    def _run(
        self,
        x: Tensor,
        mask: Tensor | Context | None,
        memory: Tensor | None,
        memory_mask: Tensor | None,
    ) -> Tensor:
        y = self.norm(x)
        if self.shift is not None:
            y = self.shift(y, mask)
        if self.kind == "attn":
            y = self.inner(y, mask)
        elif self.kind == "cross":
            y = self.inner(y, memory, memory_mask)
        else:
            y = self.inner(y)
        return self.out(y)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """x + scale * y, of (batch, tokens, dim) each."""
        return x + y if self.scale is None else torch.addcmul(x, y, self.scale)

    def half(self, *given: Tensor | None) -> Half:
        """The branch as half of a reversible layer; given as in `forward`."""
        own = [p for part in (self.norm, self.out, self.inner) for p in part.parameters()]
        if self.scale is None:
            return Half(lambda x: self.run(x, *given), tuple(own))
        scale = self.scale
        return Half(lambda x: self.run(x, *given) * scale, (*own, scale))

    @property
    def remembers(self) -> bool:
        """Whether decoding has a state."""
        return self.kind != "ff" or self.shift is not None

    def make_cache(self, batch: int, max_length: int | None, device: Device) -> Any:
        """An empty state: of the shift and of the attention; the attention's alone where it is."""
        inner = None
        if self.kind == "attn":
            inner = self.inner.make_cache(batch, max_length, device)
            if self.shift is None:
                return inner
        shift = None
        if self.shift is not None:
            where = device or device_of(self.inner)
            shift = self.shift.make_cache(batch, state_dtype(self.inner), where)
        return DecodingState([shift, inner], max_length=max_length)

    def decode(self, x: Tensor, state: Any, first: bool, *memory: Any) -> tuple[Tensor, Any]:
        """As `run`, over the first tokens, over one more or over many more.

        Args:
            x: (batch, tokens, dim).
            state: from `make_cache`.
            first: whether these are the first tokens.
            memory: (batch, memory tokens, dim) and its mask (batch, memory tokens) or None, given
                with the first tokens.

        Returns:
            (batch, tokens, dim), and the state.
        """
        y = self.norm(x)
        if self.shift is not None:
            y = _way(self.shift, first, y)(y, state.parts[0])
        if self.kind == "ff":
            y = self.inner(y)
        elif self.kind == "cross":
            y = self._recall(y, state, first, *memory)
        else:
            attend = _way(self.inner, first, y)
            if self.shift is None:
                y, state = attend(y, state)
            else:
                y, state.parts[1] = attend(y, state.parts[1])
        return self.out(y), state

    def _recall(self, y: Tensor, state: DecodingState, first: bool, *memory: Any) -> Tensor:
        position, state.position = state.position, state.position + y.shape[1]
        if not first:
            tokens = enumerate(y.split(1, 1), position)
            return torch.cat([self.inner.step(x, state.parts[1], at) for at, x in tokens], 1)
        state.parts[1] = self.inner.remember(*memory, state.max_length)
        return self.inner(y, *memory)


def _way(inner: Any, first: bool, x: Tensor) -> Any:
    """How a part reads tokens x (batch, tokens, dim): a single one has a quicker way."""
    return inner.prefill if first else inner.step if x.shape[1] == 1 else inner.extend


class Branches:
    """What lists `branches` runs them one after the other."""

    branches: Sequence[Branch]

    def forward(self, x: Tensor, *given: Tensor | None) -> Tensor:
        """(batch, tokens, dim) -> same; given: mask, memory and its mask, as in ResidualStack."""
        for branch in self.branches:
            x = branch.add(x, branch.run(x, *given))
        return x


class ResidualBlock(Branches, nn.Module):
    """Branches behind a LayerNorm each, and before a dropout that they share.

    Args:
        dim: features of a token.
        dropout: on the output of each branch.
        shifts: of the branches that have one, by name.
        inner: the attention ("attn"), cross-attention ("cross") and feed-forward ("ff"), in the
            order in which they run.
    """

    def __init__(
        self,
        dim: int,
        dropout: float = 0.0,
        shifts: Mapping[str, TokenShift] | None = None,
        **inner: nn.Module,
    ) -> None:
        super().__init__()
        self.shifts, self._kinds = dict(shifts or {}), cast(tuple[Kind, ...], tuple(inner))
        for kind, module in inner.items():
            self.add_module(f"{kind}_norm", nn.LayerNorm(dim))
            self.add_module(kind, module)
        self.dropout = Dropout(dropout)

    @property
    def branches(self) -> list[Branch]:  # type: ignore[override]
        """The branches in the order in which they run."""
        return [
            Branch(
                kind,
                getattr(self, f"{kind}_norm"),
                getattr(self, kind),
                self.dropout,
                self.shifts.get(kind),
            )
            for kind in self._kinds
        ]


class ResidualStack(nn.Module):
    """Blocks one after the other, closed by a norm.

    Args:
        blocks: the blocks.
        norm: of the output.
        reversible: blocks of two branches run over two streams, which are added up at the end;
            training keeps nothing in between, see foveal.layers.reversible.

    Attributes:
        checkpointing: recompute each block in the backward pass instead of keeping what it made.
    """

    @checked
    def __init__(
        self, blocks: Iterable[nn.Module], norm: nn.Module, reversible: bool = False
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(blocks)
        self.norm = norm
        self.reversible, self.checkpointing = reversible, False

    @property
    def blocks(self) -> list[Any]:
        """The blocks in the order in which they run."""
        return list(self.layers)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """All blocks over a sequence.

        Args:
            x: (batch, tokens, dim).
            mask: (batch, tokens) bool, True = real.
            memory: (batch, memory tokens, dim), what cross-attention reads.
            memory_mask: (batch, memory tokens) bool, True = real.

        Returns:
            (batch, tokens, dim)
        """
        given = (mask,) if memory is None else (mask, memory, memory_mask)
        if self.reversible:
            return self._close(self._reversible(x, given))
        for block in self.blocks:
            if self.checkpointing and self.training:
                x = checkpoint(block, x, *given, use_reentrant=False)
            else:
                x = block(x, *given)
        return self._close(x)

    def _reversible(self, x: Tensor, given: tuple[Tensor | None, ...]) -> Tensor:
        pairs = [(f.half(*given), g.half(*given)) for f, g in (b.branches for b in self.blocks)]
        return reversible(x, pairs)

    def _close(self, x: Tensor) -> Tensor:
        return self.norm(x)

    # -- decoding ---------------------------------------------------------------------------

    def make_cache(
        self, batch: int, max_length: int | None = None, device: Device = None
    ) -> DecodingState:
        """An empty decoding state for `batch` rows; on the layers' device if None is given."""
        branches = [branch for block in self.blocks for branch in block.branches]
        return DecodingState(
            [one.make_cache(batch, max_length, device) for one in branches if one.remembers]
        )

    def prefill(
        self, x: Tensor, cache: DecodingState, *memory: Tensor | None
    ) -> tuple[Tensor, DecodingState]:
        """The forward pass over the first tokens, remembered in an empty cache.

        Args:
            x: (batch, tokens, dim).
            memory: for cross-attention, memory and memory_mask as in `forward`.

        Returns:
            (batch, tokens, dim), and the cache.

        Raises:
            ValueError: the cache has seen tokens already.
        """
        if cache.position:
            raise ValueError(f"prefill needs an empty cache, got position={cache.position}.")
        return self._decode(x, cache, *memory)

    def step(self, x: Tensor, cache: DecodingState) -> tuple[Tensor, DecodingState]:
        """One more token: x (batch, 1, dim) -> same, and the cache."""
        return self._decode(x, cache)

    def extend(self, x: Tensor, cache: DecodingState) -> tuple[Tensor, DecodingState]:
        """Many more tokens: x (batch, tokens, dim) -> same, and the cache."""
        return self._decode(x, cache)

    def _decode(
        self, x: Tensor, cache: DecodingState, *memory: Tensor | None
    ) -> tuple[Tensor, DecodingState]:
        first, one, other, at = not cache.position, x, x, 0
        for branch in (branch for block in self.blocks for branch in block.branches):
            if branch.remembers:
                y, cache.parts[at] = branch.decode(other, cache.parts[at], first, *memory)
                at += 1
            else:
                y = branch.run(other)
            if self.reversible:
                one, other = other, branch.add(one, y)
            else:
                other = branch.add(other, y)
        cache.position += x.shape[1]
        return self._close(one + other if self.reversible else other), cache
