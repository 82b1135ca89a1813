"""DeepSpeed's SparseSelfAttention, computed by foveal."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, distributed, nn
from torch.utils._python_dispatch import _disable_current_modes

from foveal.common.checks import as_bool
from foveal.common.memo import remember
from foveal.common.words import suggest
from foveal.integrations.deepspeed.sparsity_config import FixedSparsityConfig
from foveal.ops import attend
from foveal.patterns import BlockSparse
from foveal.patterns.identity import key_of

MODES = ("add", "mul")


class Config(Protocol):
    """A SparsityConfig, ours or DeepSpeed's."""

    block: int

    def make_layout(self, seq_len: int) -> Tensor: ...


class Made(NamedTuple):
    """Patterns by whether they are causal, and the layout as it was that they are made of."""

    layout: Tensor
    version: int
    patterns: dict[bool, BlockSparse]


class SparseSelfAttention(nn.Module):
    """Softmax attention in which blocks of queries read the blocks of keys that a layout names.

    Takes float32, bfloat16 and float64 too, trains on a CPU, and gives `rpe` its gradient. A
    length need not be a multiple of the block. A query left without any key gives zeros.

    As in DeepSpeed, `attention="unidirectional"` of a layout speaks of blocks: inside the blocks
    on the diagonal tokens read their future, unless attn_mask or `causal` forbids it.

    Args:
        sparsity_config: whose `make_layout` names the blocks, DeepSpeed's own objects too; None
            is FixedSparsityConfig(num_heads=4).
        key_padding_mask_mode: "add" adds key_padding_mask to the logits; with "mul" a zero in it
            means that the key is not read.
        attn_mask_mode: the same of attn_mask.
        max_seq_length: longest sequence, for which the layout is made. It is the buffer
            `master_layout` (heads, blocks, blocks), and part of state dicts as in DeepSpeed.
        causal: no token reads its future; cheaper than an attn_mask that says so.

    Raises:
        TypeError: sparsity_config has no make_layout.
        ValueError: an unknown mode, or a layout that does not exist.
    """

    master_layout: Tensor

    def __init__(
        self,
        sparsity_config: Config | None = None,
        key_padding_mask_mode: str = "add",
        attn_mask_mode: str = "mul",
        max_seq_length: int = 2048,
        *,
        causal: bool = False,
    ) -> None:
        super().__init__()
        if sparsity_config is None:
            sparsity_config = FixedSparsityConfig(num_heads=4)
        if not hasattr(sparsity_config, "make_layout") or not hasattr(sparsity_config, "block"):
            raise TypeError(
                "sparsity_config must be a SparsityConfig with block and make_layout(seq_len), "
                f"got {type(sparsity_config).__name__}."
            )
        self.sparsity_config = sparsity_config
        self.key_padding_mask_mode = _as_mode("key_padding_mask_mode", key_padding_mask_mode)
        self.attn_mask_mode = _as_mode("attn_mask_mode", attn_mask_mode)
        self.causal = as_bool("causal", causal)
        self._synchronized = False
        with _disable_current_modes():  # blocks have values where no other tensor has
            self.register_buffer("master_layout", sparsity_config.make_layout(max_seq_length))
            self._made = self._make()

    # -- the layout as a pattern --------------------------------------------------------------

    def _make(self) -> Made:
        layout = self.master_layout
        version = 0 if layout.is_inference() else layout._version
        return Made(layout, version, {self.causal: self._pattern_of(layout, self.causal)})

    def _pattern_of(self, layout: Tensor, causal: bool) -> BlockSparse:
        pattern = BlockSparse(layout, self.sparsity_config.block, causal)
        pattern.per_head()  # before a compiler traces it
        return pattern

    def _pattern(self, causal: bool) -> BlockSparse:
        """That of the buffer, which is loaded, moved, and may be written to."""
        if torch.compiler.is_compiling():
            return self._made.patterns[causal]
        if self.master_layout.is_meta:  # without values: what it was made of
            if causal not in self._made.patterns:
                self._made.patterns[causal] = self._pattern_of(self._made.layout, causal)
            return self._made.patterns[causal]
        if not self._synchronized and distributed.is_available() and distributed.is_initialized():
            distributed.broadcast(self.master_layout, src=0)  # for layouts may be random
            self._synchronized, self._made = True, self._make()
        layout, version, patterns = self._made
        now = self.master_layout
        if now is not layout or not (now.is_inference() or now._version == version):
            self._made = self._make()
            patterns = self._made.patterns
        if causal not in patterns:
            patterns[causal] = self._pattern_of(now, causal)
        return patterns[causal]

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._made = self._make()

    # -- attention ----------------------------------------------------------------------------

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rpe: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Attention of tokens to each other.

        Args:
            query: (batch, heads, length, head_dim).
            key: the same shape, or (batch, heads, head_dim, length).
            value: (batch, heads, length, head_dim_v).
            rpe: added to the logits: broadcasts to (batch, heads, length, length).
            key_padding_mask: (batch, length), or with dimensions of 1 between and behind.
            attn_mask: (length, length), or with dimensions in front that broadcast.

        Returns:
            (batch, heads, length, head_dim_v).

        Raises:
            ValueError: shapes do not fit the layout or each other, or a mask its mode.
        """
        key = self._check(query, key)
        key_mask, terms = None, [] if rpe is None else [rpe]
        if key_padding_mask is not None:
            padding = _padding(key_padding_mask, query)
            if self.key_padding_mask_mode == "mul":
                key_mask = padding != 0
            else:
                terms.append(_added("key_padding_mask", padding, query)[:, None, None])
        causal = self.causal
        if attn_mask is not None:
            _check_attn_mask(attn_mask, query)
            reach = _reach(attn_mask) if self.attn_mask_mode == "mul" else None
            causal = causal or reach == "past"
            if reach is None:
                terms.append(_added("attn_mask", attn_mask, query))
            elif reach == "some":
                allowed = query.new_zeros(attn_mask.shape)
                terms.append(allowed.masked_fill(attn_mask == 0, -torch.inf))
        bias = None if not terms else sum(terms[1:], start=terms[0])
        return attend(query, key, value, self._pattern(causal), bias=bias, key_mask=key_mask)

    def _check(self, query: Tensor, key: Tensor) -> Tensor:
        """The key as it should be, where the rest fits the layout."""
        if query.ndim != 4 or key.ndim != 4:
            raise ValueError(
                "query and key must be (batch, heads, length, head_dim), got "
                f"{tuple(query.shape)}, {tuple(key.shape)}."
            )
        heads, length = query.shape[1], query.shape[2]
        if heads != self.master_layout.shape[0]:
            raise ValueError(
                f"query must have the {self.master_layout.shape[0]} heads of the sparsity_config, "
                f"got {tuple(query.shape)}."
            )
        most = self.master_layout.shape[1] * self.sparsity_config.block
        if length > most:
            raise ValueError(
                f"query must have at most max_seq_length = {most} tokens, got {length}; raise "
                "max_seq_length."
            )
        if key.shape[2] != length and key.shape[3] == length:
            key = key.transpose(-1, -2)
        if key.shape[2] != length:
            raise ValueError(
                "query and key must have as many tokens, for this is self-attention, got "
                f"{tuple(query.shape)}, {tuple(key.shape)}."
            )
        return key


def _as_mode(name: str, mode: Any) -> str:
    if mode not in MODES:
        raise ValueError(f"{name} must be 'add' or 'mul', got {mode!r}; {suggest(mode, MODES)}")
    return mode


def _padding(mask: Any, query: Tensor) -> Tensor:
    """(batch, length), whatever dimensions of 1 it has besides."""
    batch, length = query.shape[0], query.shape[2]
    fits = isinstance(mask, Tensor) and mask.ndim > 1 and mask.shape[0] == batch
    if not fits or [n for n in mask.shape[1:] if n != 1] != [length] * (length != 1):
        got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(
            f"key_padding_mask must be (batch, length) = ({batch}, {length}), got {got}."
        )
    return mask.reshape(batch, length)


def _check_attn_mask(mask: Any, query: Tensor) -> None:
    length = query.shape[2]
    if not isinstance(mask, Tensor) or tuple(mask.shape[-2:]) != (length, length):
        got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"attn_mask must be (length, length) = ({length}, {length}), got {got}.")


def _reach(mask: Tensor) -> str:
    """Whether a mask of zeros and others lets tokens read "all", their "past", or "some"."""
    if torch.compiler.is_compiling():
        return "some"
    look = _looked_through if mask.is_inference() else _looked_once
    return look(mask)


def _looked_through(mask: Tensor) -> str:
    size = mask.shape[-1]
    if mask.numel() != size * size or not bool((mask.reshape(size, size)[-1] != 0).all()):
        return "some"
    allowed = mask.reshape(size, size) != 0
    past = not bool(allowed[0, 1:].any())
    wanted = torch.ones_like(allowed)
    if not allowed.equal(wanted.tril() if past else wanted):
        return "some"
    return "past" if past else "all"


_looked_once = remember(entries=64, key=key_of)(_looked_through)


def _added(name: str, mask: Tensor, query: Tensor) -> Tensor:
    """What is added to logits, which a mask of bools is not meant to be."""
    if mask.dtype == torch.bool:
        raise ValueError(
            f"{name} must be a number to add in the mode 'add', got torch.bool; make the module "
            f"with {name}_mode='mul'."
        )
    return mask if mask.is_floating_point() else mask.to(query.dtype)
