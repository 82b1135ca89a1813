"""Residual pairs one after the other, plain or reversible, as two packages have them.

The work is done by `layers.reversible`; what stands here are the packages' names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import get_device_states, set_device_states

from foveal.common.by_example import shared_uniform
from foveal.layers.reversible import ReversibleSequence as Sequence_

Route = Mapping[str, Sequence[tuple[bool, bool]]]
Pair = tuple[dict[str, Any], dict[str, Any]]


def route_args(router: Route, args: dict[str, Any], depth: int) -> list[Pair]:
    """The keywords of both branches of each of `depth` pairs, as the router sends them."""
    routed: list[Pair] = [({}, {}) for _ in range(depth)]
    for name in args.keys() & router.keys():
        for pair, wanted in zip(routed, router[name], strict=False):
            for own, goes in zip(pair, wanted, strict=True):
                if goes:
                    own[name] = args[name]
    return routed


def layer_drop(layers: Sequence[Any], prob: float) -> Sequence[Any]:
    """Each layer with probability 1 - prob; the first one where all would go."""
    drawn = shared_uniform(len(layers))
    kept = [layer for layer, share in zip(layers, drawn, strict=True) if share >= prob]
    return kept or layers[:1]


class Deterministic(nn.Module):
    """A module that can run again with the random numbers of an earlier call."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.cpu_state: Tensor | None = None
        self.cuda_in_fwd: bool | None = None
        self.gpu_devices: Any = None
        self.gpu_states: Any = None

    def record_rng(self, *args: Any) -> None:
        """Remember the random state of the CPU and of the devices of the arguments."""
        self.cpu_state = torch.get_rng_state()
        self.cuda_in_fwd = torch.cuda.is_initialized()
        if self.cuda_in_fwd:
            self.gpu_devices, self.gpu_states = get_device_states(*args)

    def forward(
        self, *args: Any, record_rng: bool = False, set_rng: bool = False, **kwargs: Any
    ) -> Any:
        """What the module gives, with the random state recorded before or set back to."""
        if record_rng:
            self.record_rng(*args)
        if not set_rng:
            return self.net(*args, **kwargs)
        devices = self.gpu_devices if self.cuda_in_fwd else []
        with torch.random.fork_rng(devices=devices):
            assert self.cpu_state is not None
            torch.set_rng_state(self.cpu_state)
            if self.cuda_in_fwd:
                set_device_states(self.gpu_devices, self.gpu_states)
            return self.net(*args, **kwargs)


class ReversibleBlock(nn.Module):
    """y1 = x1 + f(x2), y2 = x2 + g(y1) on the halves of the features of x (batch, n, 2 dim)."""

    def __init__(self, f: nn.Module, g: nn.Module) -> None:
        super().__init__()
        self.f, self.g = Deterministic(f), Deterministic(g)

    def forward(
        self,
        x: Tensor,
        f_args: dict[str, Any] = {},  # noqa: B006 - the package's default; never written to
        g_args: dict[str, Any] = {},  # noqa: B006
    ) -> Tensor:
        """(batch, n, 2 dim) -> same, without a graph."""
        first, second = x.chunk(2, 2)
        with torch.no_grad():
            first = first + self.f(second, record_rng=self.training, **f_args)
            second = second + self.g(first, record_rng=self.training, **g_args)
        return torch.cat((first, second), 2)

    def backward_pass(
        self,
        y: Tensor,
        dy: Tensor,
        f_args: dict[str, Any] = {},  # noqa: B006
        g_args: dict[str, Any] = {},  # noqa: B006
    ) -> tuple[Tensor, Tensor]:
        """Input and its gradient from the output and its gradient; adds those of parameters."""
        (first, second), (d_first, d_second) = y.detach().chunk(2, 2), dy.chunk(2, 2)
        second, d_first = _undo(self.g, first, second, d_second, d_first, g_args)
        first, d_second = _undo(self.f, second, first, d_first, d_second, f_args)
        return torch.cat((first, second), 2), torch.cat((d_first, d_second), 2)


def _undo(
    branch: Deterministic, x: Tensor, y: Tensor, dy: Tensor, dx: Tensor, args: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """y minus what the branch made of x, and dx plus its gradient."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        out = branch(x, set_rng=branch.cpu_state is not None, **args)
    torch.autograd.backward(out, dy)
    return y - out.detach(), dx if x.grad is None else dx + x.grad


class SequentialSequence(nn.Module):
    """x = x + f(x); x = x + g(x) for each pair.

    Args:
        layers: pairs of modules.
        args_route: keyword -> for each pair, whether f and whether g take it.
        layer_dropout: probability of leaving out a pair while training; one always stays.

    Raises:
        ValueError: a route is not as long as the layers.
    """

    def __init__(
        self,
        layers: nn.ModuleList,
        args_route: Route = {},  # noqa: B006
        layer_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        for name, route in args_route.items():
            if len(route) != len(layers):
                raise ValueError(
                    f"args_route[{name!r}] must have one pair for each of {len(layers)} layers, "
                    f"got {len(route)}."
                )
        self.layers, self.args_route, self.layer_dropout = layers, args_route, layer_dropout

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """(batch, tokens, dim) -> same; keywords go where args_route sends them."""
        routed = route_args(self.args_route, kwargs, len(self.layers))
        pairs: Any = list(zip(self.layers, routed, strict=True))
        if self.training and self.layer_dropout > 0:
            pairs = layer_drop(pairs, self.layer_dropout)
        for (f, g), (f_args, g_args) in pairs:
            x = x + f(x, **f_args)
            x = x + g(x, **g_args)
        return x


class ReversibleSequence(Sequence_):
    """The same with memory that does not grow with the depth; the sum of both streams.

    Args: as in SequentialSequence.
    """

    def __init__(
        self,
        blocks: nn.ModuleList,
        args_route: Route = {},  # noqa: B006
        layer_dropout: float = 0.0,
    ) -> None:
        super().__init__([], layer_dropout=layer_dropout)
        self.blocks = nn.ModuleList(ReversibleBlock(f, g) for f, g in blocks)  # type: ignore
        self.args_route = dict(args_route)
        self.check_routes()
