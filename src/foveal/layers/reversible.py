"""Residual layers whose inputs are recomputed from their outputs: memory that does not grow."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from foveal.common.by_example import shared_uniform
from foveal.ops.define import is_beyond_functions


class Half(NamedTuple):
    """One residual branch: a function of one stream, and the parameters it uses."""

    fn: Callable[[Tensor], Tensor]
    parameters: tuple[nn.Parameter, ...]


def reversible(x: Tensor, layers: Sequence[tuple[Half, Half]]) -> Tensor:
    """Run pairs of residual branches over two streams and add these up.

    y1 = x1 + f(x2), y2 = x2 + g(y1), starting from x1 = x2 = x. The backward pass goes from the
    outputs back to the inputs, so that nothing in between is kept. Gomez et al., "The Reversible
    Residual Network" (2017).

    Args:
        x: (batch, tokens, dim).

    Returns:
        (batch, tokens, dim), the sum of both streams.
    """
    if not layers or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        first, second = _run(x, x, layers)
        return first + second
    learned = (p for pair in layers for half in pair for p in half.parameters)
    if is_beyond_functions(x, *learned):
        first, second = _run(x, x, layers)
        return first + second
    unique = {id(p): p for pair in layers for half in pair for p in half.parameters}
    parameters = [p for p in unique.values() if p.requires_grad]
    first, second = _Reversible.apply(x, layers, parameters, *parameters)
    return first + second


def _run(first: Tensor, second: Tensor, layers: Iterable) -> tuple[Tensor, Tensor]:
    for f, g in layers:
        first = first + f.fn(second)
        second = second + g.fn(first)
    return first, second


class _Replay:
    """The random state and autocast under which a branch ran, to run it again alike."""

    def __init__(self, x: Tensor) -> None:
        self.device = x.device
        self.cpu = torch.get_rng_state()
        self.own = torch.cuda.get_rng_state(x.device) if x.is_cuda else None
        kind = "cpu" if x.device.type == "meta" else x.device.type  # meta knows no autocast
        self.kind = kind
        self.autocast = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        devices = [self.device] if self.own is not None else []
        enabled, dtype = self.autocast
        with torch.random.fork_rng(devices=devices):
            torch.set_rng_state(self.cpu)
            if self.own is not None:
                torch.cuda.set_rng_state(self.own, self.device)
            with torch.autocast(self.kind, dtype=dtype, enabled=enabled):
                yield


class _Reversible(torch.autograd.Function):
    """x, layers, parameters -> both streams; parameters are passed so that they get gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: Any, parameters: Any, *_: Tensor) -> Any:
        ctx.layers, ctx.parameters, ctx.replays = layers, parameters, []
        first = second = x
        for f, g in layers:
            before = _Replay(x)
            first = first + f.fn(second)
            between = _Replay(x)
            second = second + g.fn(first)
            ctx.replays.append((before, between))
        ctx.save_for_backward(x, first, second)
        return first, second

    @staticmethod
    def backward(ctx: Any, d_first: Tensor, d_second: Tensor) -> Any:
        x, first, second = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            return _plain_gradients(ctx, x, d_first, d_second)
        grads: dict[int, Tensor] = {}
        for (f, g), (before, between) in zip(ctx.layers[::-1], ctx.replays[::-1], strict=True):
            with between.again():
                moved, d_in = _branch(g, first, d_second, grads)
            second, d_first = second - moved, d_first + d_in
            with before.again():
                moved, d_in = _branch(f, second, d_first, grads)
            first, d_second = first - moved, d_second + d_in
        found = [grads.get(id(p)) for p in ctx.parameters]
        return (d_first + d_second, None, None, *found)


def _plain_gradients(ctx: Any, x: Tensor, d_first: Tensor, d_second: Tensor) -> Any:
    """Gradients that can be differentiated: everything in between is kept for once."""
    x = x.view_as(x)
    first = second = x
    for (f, g), (before, between) in zip(ctx.layers, ctx.replays, strict=True):
        with before.again():
            first = first + f.fn(second)
        with between.again():
            second = second + g.fn(first)
    wanted = [x, *ctx.parameters] if x.requires_grad else ctx.parameters
    grads = torch.autograd.grad(
        (first, second), wanted, (d_first, d_second), create_graph=True, allow_unused=True
    )
    d_x = grads[0] if x.requires_grad else None
    return (d_x, None, None, *grads[len(wanted) - len(ctx.parameters) :])


def _branch(
    half: Half, x: Tensor, d_out: Tensor, grads: dict[int, Tensor]
) -> tuple[Tensor, Tensor]:
    """Run a branch again: its output, and the gradient of its input; adds to `grads`."""
    learned = [p for p in half.parameters if p.requires_grad]
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        out = half.fn(x)
    d_in, *d_learned = torch.autograd.grad(
        out, [x, *learned], d_out.to(out.dtype), allow_unused=True
    )
    for p, grad in zip(learned, d_learned, strict=True):
        if grad is not None:
            grads[id(p)] = grads[id(p)] + grad if id(p) in grads else grad
    return out.detach(), torch.zeros_like(x) if d_in is None else d_in


class _Pair(nn.Module):
    """Two branches that run one after the other."""

    def __init__(self, f: nn.Module, g: nn.Module) -> None:
        super().__init__()
        self.f, self.g = f, g


class ReversibleSequence(nn.Module):
    """Pairs of residual branches with memory that does not grow with their number.

    Args:
        blocks: pairs (f, g) of modules (batch, tokens, dim) -> same.
        args_route: keyword -> for each block, whether f and whether g take it.
        layer_dropout: probability of leaving out a block while training; one always stays.

    Raises:
        ValueError: a route is not as long as the blocks.
    """

    def __init__(
        self,
        blocks: Iterable[Sequence[nn.Module]],
        args_route: dict[str, Sequence[tuple[bool, bool]]] | None = None,
        layer_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Pair(f, g) for f, g in blocks)
        self.args_route = dict(args_route or {})
        self.layer_dropout = layer_dropout
        self.check_routes()

    def check_routes(self) -> None:
        """Raise ValueError for a route that is not as long as the blocks."""
        for name, route in self.args_route.items():
            if len(route) != len(self.blocks):
                raise ValueError(
                    f"args_route[{name!r}] must have one pair for each of {len(self.blocks)} "
                    f"blocks, got {len(route)}."
                )

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """(batch, tokens, dim) -> same; keywords go where args_route sends them."""
        layers = []
        for i, block in enumerate(self.blocks):
            pair = [
                self._half(getattr(block, name), i, place, kwargs)
                for place, name in enumerate("fg")
            ]
            layers.append((pair[0], pair[1]))
        if self.training and self.layer_dropout > 0 and layers:
            kept = [drawn >= self.layer_dropout for drawn in shared_uniform(len(layers))]
            some = [layer for layer, keep in zip(layers, kept, strict=True) if keep]
            layers = some or layers[:1]
        return reversible(x, layers)

    def _half(self, module: nn.Module, block: int, place: int, kwargs: dict[str, Any]) -> Half:
        own = {
            name: value
            for name, value in kwargs.items()
            if name in self.args_route and self.args_route[name][block][place]
        }
        return Half(lambda x: module(x, **own), tuple(module.parameters()))
