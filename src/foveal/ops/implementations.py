"""The implementations of attend(): what each refuses, what it would take, and how it runs.

A new one is an object here and a place in `choose.ranking`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from foveal.ops import dense, flex, native, triton
from foveal.ops.bias import TableBias, WindowBias
from foveal.ops.logits import with_sinks
from foveal.ops.operator import Attention
from foveal.ops.pyramid import pyramid_attend, pyramid_reference
from foveal.ops.tiled_op import tiled_attend
from foveal.ops.work import Call, Prepared, Result, Work
from foveal.patterns import Halo


class Implementation(Protocol):
    """One way of computing a call."""

    name: str

    def refuses(self, work: Work) -> str | None:
        """The reason why it cannot do a call, or None; computes and compiles nothing."""

    def ready(self, work: Work) -> bool:
        """Whether it is right here for a call that it does not refuse; may compile it."""

    def run(self, call: Call) -> Result:
        """The result of a call that it does not refuse."""

    def prepared(self, work: Work) -> Prepared | None:
        """What `run` comes to for a work without bias, dropout and lse, if it has a short way."""


class Reference:
    """The definition: every score of every pair."""

    name = "reference"

    def refuses(self, work: Work) -> str | None:
        if work.pattern.pools and work.compiling:
            return "its definition asks for values, which the compiler does not have"
        return None

    def ready(self, work: Work) -> bool:
        return True

    def run(self, call: Call) -> Result:
        if call.pattern.pools:
            return _of_pooled(pyramid_reference, call)
        return with_sinks(*dense.by_definition(call), call.sinks)

    def prepared(self, work: Work) -> Prepared | None:
        return None


class Dense:
    """scaled_dot_product_attention under a mask."""

    name = "dense"

    def refuses(self, work: Work) -> str | None:
        return dense.refuses(work)

    def ready(self, work: Work) -> bool:
        return True

    def run(self, call: Call) -> Result:
        return dense.run(call)

    def prepared(self, work: Work) -> Prepared | None:
        return dense.prepared(work)


class Planned:
    """What works from a tile plan: an engine behind an operator, head by head where they differ.

    Pooled keys and values are laid side by side at all levels, then it is an ordinary call.
    """

    name: str
    engine: Attention

    def refuses(self, work: Work) -> str | None:
        if not work.square:
            return f"it needs the queries that the pattern has for its keys, got {work.lengths}"
        return self.lacks(work)

    def lacks(self, work: Work) -> str | None:
        """What the engine lacks for a call with as many queries as the pattern has."""
        raise NotImplementedError

    def ready(self, work: Work) -> bool:
        return True

    def run(self, call: Call) -> Result:
        work, bias = call.work, call.bias
        if work.pattern.pools:
            return _of_pooled(functools.partial(pyramid_attend, engine=self.engine), call)
        if work.pattern.heads is not None and not self.takes_heads:
            return _by_head(self.engine, call)
        if isinstance(bias, WindowBias) and not self.takes_any_window:
            bias = _whole_rows(work, bias)
        pattern = work.pattern
        if isinstance(bias, TableBias):
            pattern, bias = bias.placed(pattern), bias.by_head()
        rest = (bias, call.key_mask, call.scale, call.dropout_p, work.lse, *call.shaping)
        return self.engine(call.q, call.k, call.v, pattern, *rest)

    def prepared(self, work: Work) -> Prepared | None:
        if work.pattern.pools or (work.pattern.heads is not None and not self.takes_heads):
            return None
        engine = self.engine
        return lambda q, k, v, pattern, key_mask, scale: engine(
            q, k, v, pattern, None, key_mask, scale, 0.0, False
        )[0], None

    takes_heads = False
    """Whether the engine takes a pattern whose heads have layouts of their own."""

    takes_any_window = False
    """Whether the engine takes a WindowBias where an image ends within a row."""


class Tiled(Planned):
    """The tile plan in plain PyTorch."""

    name = "tiled"

    def __init__(self) -> None:
        self.engine = tiled_attend

    def lacks(self, work: Work) -> str | None:
        return None


class Native(Planned):
    """The tile plan in a C++ kernel."""

    name = "native"

    def __init__(self) -> None:
        self.engine = native.native_attend

    def lacks(self, work: Work) -> str | None:
        if work.bias == "table":
            return "its tables of relative positions have a row an offset, and no other"
        return native.why_not(work.device.type, work.dtype)

    def ready(self, work: Work) -> bool:
        return native.ready()


class Triton(Planned):
    """Triton kernels for halo attention."""

    name = "triton"
    takes_any_window = True

    def __init__(self) -> None:
        self.engine = triton.triton_attend

    def lacks(self, work: Work) -> str | None:
        if work.pattern.pools:
            return "it cannot pool keys into levels"
        head_dim = max(work.q[3], work.v[3])
        return triton.why_not(
            work.device.type, work.dtype, work.pattern, head_dim, work.bias, work.dropout
        )

    def ready(self, work: Work) -> bool:
        pattern = work.pattern
        assert isinstance(pattern, Halo)
        sizes = (pattern.block, pattern.halo, pattern.query_stride, work.q[3], work.v[3])
        return triton.trusted(*sizes, work.dtype, str(work.device))


class Flex(Planned):
    """Compiled FlexAttention."""

    name = "flex"
    takes_heads = True

    def __init__(self) -> None:
        self.engine = flex.flex_attend

    def lacks(self, work: Work) -> str | None:
        return flex.why_not(
            work.device.type, work.bias, work.bias_grad, work.requires_grad, work.dropout
        )

    def ready(self, work: Work) -> bool:
        dims = (work.q[3], work.v[3])
        return flex.trusted(work.pattern, work.k[2], dims, work.dtype, str(work.device))


def _of_pooled(run: Callable[..., Result], call: Call) -> Result:
    """A call whose keys are pooled, by its definition or by an engine."""
    assert not isinstance(call.bias, Tensor | WindowBias)
    return run(
        *call[1:4],
        call.pattern,
        bias=call.bias,
        key_mask=call.key_mask,
        query_mask=query_mask(call),
        scale=call.scale,
        dropout_p=call.dropout_p,
        sinks=call.sinks,
        softcap=call.softcap,
    )


def query_mask(call: Call) -> Tensor | None:
    """The queries that are real: the keys that are, where they are as many."""
    return call.key_mask if call.work.q[2] == call.work.k[2] else None


def _whole_rows(work: Work, bias: WindowBias) -> WindowBias | Tensor:
    """The same, or as a tensor for an image that ends within a row: its tiles differ in shape."""
    pattern = work.pattern
    assert isinstance(pattern, Halo)
    if work.k[2] % pattern.width == 0:
        return bias
    return bias.dense(pattern, work.k[2])


def _by_head(engine: Attention, call: Call) -> Result:
    """Heads with layouts of their own, one after the other."""
    work, bias, whole = call.work, call.bias, call.work.pattern
    assert not isinstance(bias, WindowBias)
    if isinstance(bias, TableBias):
        whole, bias = bias.placed(whole), bias.by_head()
    repeats = work.q[1] // work.k[1]
    parts = []
    for head, pattern in enumerate(whole.per_head()):
        own = slice(head // repeats, head // repeats + 1)
        part = bias
        if part is not None and part.shape[1] > 1:
            part = part[:, head : head + 1]
        sinks = None if call.sinks is None else call.sinks[head : head + 1]
        q, k, v = call.q[:, head : head + 1], call.k[:, own], call.v[:, own]
        rest = (part, call.key_mask, call.scale, call.dropout_p, work.lse, sinks, call.softcap)
        parts.append(engine(q, k, v, pattern, *rest))
    outs, lses = zip(*parts, strict=True)
    return torch.cat(outs, 1), torch.cat(lses, 1)


IMPLEMENTATIONS: dict[str, Implementation] = {
    one.name: one for one in (Reference(), Dense(), Tiled(), Native(), Triton(), Flex())
}
"""Every implementation by its name."""
