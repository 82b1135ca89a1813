"""What a call of attend() asks for: its sizes and options, without and with its tensors."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from torch import Tensor

from foveal.common.memo import remember, untraced
from foveal.ops.bias import TableBias, WindowBias
from foveal.patterns import Pattern
from foveal.patterns.tabled import Tabled

Sizes = tuple[int, ...]


class Work(NamedTuple):
    """Sizes and options of one call: all that the choice of an implementation may depend on.

    q, k, v: the shapes of the tensors, (batch, heads, length, features).
    bias: None; "tensor", whose shape with four dimensions is `bias_shape`; "window" for a
        WindowBias; "offsets" for a TableBias whose rows follow from differences of numbers that
        the tokens have (see `Codes`), "table" for any other.
    bias_grad, requires_grad: gradients are wanted, of the bias, or of anything.
    threads: of the processor; 0 while compiling, where sizes may be symbols.
    """

    pattern: Pattern
    q: Sizes
    k: Sizes
    v: Sizes
    dtype: torch.dtype
    device: torch.device
    bias: str | None = None
    bias_shape: Sizes = ()
    bias_grad: bool = False
    key_mask: bool = False
    dropout: bool = False
    lse: bool = False
    requires_grad: bool = False
    compiling: bool = False
    exporting: bool = False
    threads: int = 1
    sinks: bool = False
    softcap: bool = False

    def cache_key(self) -> Hashable:
        """Equal for calls that are alike; keeps no pattern alive."""
        return self.pattern.cache_key(), *self[1:]

    @property
    def heads(self) -> int:
        """Heads of queries, times the batch."""
        return self.q[0] * self.q[1]

    @property
    def square(self) -> bool:
        """Whether there are as many queries as the pattern has for these keys."""
        if self.pattern.pools:  # whose queries and keys may differ in number
            return True
        return self.q[2] == self.pattern.num_queries(self.k[2])

    def of_batch(self, count: int) -> Work:
        """The same for so many examples."""
        q, k, v = ((count, *sizes[1:]) for sizes in (self.q, self.k, self.v))
        bias = self.bias_shape
        if bias and bias[0] > 1:
            bias = (count, *bias[1:])
        return self._replace(q=q, k=k, v=v, bias_shape=bias)

    @property
    def lengths(self) -> str:
        """Queries and keys in words."""
        return f"{self.q[2]} queries and {self.k[2]} keys"

    @property
    def plain(self) -> bool:
        """Whether nothing but the pattern shapes the weights."""
        shaped = self.key_mask or self.dropout or self.sinks or self.softcap
        return self.bias is None and not shaped


class Call(NamedTuple):
    """Work with its tensors, and the numbers that no choice depends on; shapes as in `attend`.

    A tensor bias has four dimensions.
    """

    work: Work
    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | WindowBias | TableBias | None
    key_mask: Tensor | None
    scale: float
    dropout_p: float
    sinks: Tensor | None = None
    softcap: float | None = None

    @property
    def pattern(self) -> Pattern:
        return self.work.pattern

    @property
    def shaping(self) -> tuple[Tensor | None, float | None]:
        """(sinks, softcap)"""
        return self.sinks, self.softcap


Result = tuple[Tensor, Tensor | None]
"""out and, where the work asks for it, the log-sum-exp; see `attend`."""

Run = Callable[[Tensor, Tensor, Tensor, Pattern, Tensor | None, float], Tensor]
"""(q, k, v, pattern, key_mask, scale) -> out"""

Prepared = tuple[Run, Tensor | None]
"""What computes calls that are alike, and the tensor that it keeps."""


def work_of(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    bias: Tensor | WindowBias | TableBias | None,
    key_mask: Tensor | None,
    dropout_p: float,
    return_lse: bool,
    scale: float | Tensor | None = None,
    sinks: Tensor | None = None,
    softcap: float | None = None,
) -> Work:
    """The sizes and options of a call; nothing is checked, and no value looked at."""
    compiling = torch.compiler.is_compiling()
    if not compiling and torch._C._get_tracing_state() is not None:
        options = (dropout_p, return_lse, scale, sinks, softcap)
        with untraced():  # within, sizes would be tensors
            return work_of(q, k, v, pattern, bias, key_mask, *options)
    kind, shape, bias_grad = _bias(bias, pattern)
    grad = torch.is_grad_enabled()
    learned = bias_grad or (isinstance(scale, Tensor) and scale.requires_grad)
    learned = learned or (sinks is not None and sinks.requires_grad)
    return Work(
        pattern,
        q.shape,
        k.shape,
        v.shape,
        q.dtype,
        q.device,
        kind,
        shape,
        grad and bias_grad,
        key_mask is not None,
        bool(dropout_p),
        return_lse,
        grad and (q.requires_grad or k.requires_grad or v.requires_grad or learned),
        compiling,
        compiling and torch.compiler.is_exporting(),
        0 if compiling else torch.get_num_threads(),
        sinks is not None,
        softcap is not None,
    )


def _bias(
    bias: Tensor | WindowBias | TableBias | None, pattern: Pattern
) -> tuple[str | None, Sizes, bool]:
    """(kind, shape with four dimensions, whether it may need a gradient)"""
    if bias is None:
        return None, (), False
    if isinstance(bias, WindowBias):
        return "window", (), bias.rows.requires_grad or bias.columns.requires_grad
    if isinstance(bias, TableBias):
        return table_kind(bias.placed(pattern)), (), bias.table.requires_grad
    return "tensor", (1,) * (4 - bias.ndim) + tuple(bias.shape), bias.requires_grad


@remember(entries=512)
def table_kind(placed: Pattern) -> str:
    """Of a TableBias, whose rule the pattern has: "offsets" or "table"."""
    return "offsets" if isinstance(placed, Tabled) and placed.has_codes else "table"
