"""What a model costs, from its shape alone."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foveal.common import html
from foveal.common.words import in_bytes
from foveal.models.base import Model


@dataclass(frozen=True)
class Cost:
    """Cost of a model on inputs of some size.

    Attributes:
        length: tokens of the inputs, all samples together; pictures where nothing is a token.
        parameters: trained values.
        flops: floating-point operations of a forward pass; a multiply-add counts as two, and
            `attend` counts the pairs that the pattern allows, whatever would compute them.
        flops_per_token: the same over the tokens.
        cache_bytes_per_token: bytes of the decoding state at the end of the sequences, over the
            tokens; 0 where the model cannot be decoded token by token.
    """

    length: int
    parameters: int
    flops: int
    flops_per_token: float
    cache_bytes_per_token: float

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        each, cache = self.flops_per_token, self.cache_bytes_per_token
        state = f"{in_bytes(cache * self.length)}, {in_bytes(cache)} a token" if cache else ""
        rows = {
            "inputs": f"{self.length:,}",
            "parameters": f"{self.parameters:,}",
            "forward": f"{self.flops / 1e9:.4g} GFLOP, {each / 1e6:.4g} MFLOP each",
            "decoding state": state,
        }
        return html.facts(rows, title="cost")


def cost(model: nn.Module, *inputs: Any, length: int | tuple[int, int] | None = None) -> Cost:
    """Parameters, operations and cache of a model.

    It runs once, in evaluation mode, on tensors without values; the model itself stays untouched.

    Args:
        model: a model of foveal, or any module that takes `inputs`.
        inputs: what it would be called with, of which only sizes matter; or nothing, for a
            sequence of max_seq_len or a picture of the model's size.
        length: tokens of one sequence, or (height, width) of one picture, in place of inputs; it
            may be given as the only one of them.

    Raises:
        ValueError: the length is not positive or does not suit the model; or inputs are missing
            for a module that is no model of foveal.

    Example:
        >>> import foveal
        >>> model = foveal.create_model("halonet_h0", num_classes=10)
        >>> foveal.cost(model, (256, 256)).flops > 10**9
        True
    """
    if len(inputs) == 1 and not isinstance(inputs[0], Tensor):
        (length,), inputs = inputs, ()
    if not inputs:
        inputs = _example(model, length)
    tokens = [x for x in inputs if isinstance(x, Tensor) and not x.is_floating_point()]
    count = sum(x.numel() for x in tokens) or len(inputs[0])
    twin: Any = _without_values(model)
    if isinstance(length, int) and isinstance(model, Model) and hasattr(model, "max_seq_len"):
        twin.max_seq_len = max(model.max_seq_len, length)  # what longer ones would cost
    flops = _count(twin, inputs)
    parameters = sum(p.numel() for p in model.parameters())
    state = _cache_bytes(model, tokens[-1]) if tokens else 0
    return Cost(count, parameters, flops, flops / count, state / count)


def _example(model: nn.Module, length: int | tuple[int, int] | None) -> tuple[Tensor, ...]:
    for side in (length,) if isinstance(length, int) else length or ():
        if side < 1:
            raise ValueError(f"length must be at least 1, got {length=}.")
    if not isinstance(model, Model):
        raise ValueError(
            f"inputs must be given for a {type(model).__name__}, which is no model of foveal."
        )
    return model.example_inputs(length)


def _count(twin: nn.Module, inputs: tuple[Any, ...]) -> int:
    """Operations of a forward pass on the meta device."""
    from torch.utils.flop_counter import FlopCounterMode  # imports Triton where there is one

    import foveal.ops.flops  # noqa: F401  (formulas of our operators)

    given = [x.to("meta") if isinstance(x, Tensor) else x for x in inputs]
    counter: Any = FlopCounterMode(display=False)
    counter.mod_tracker = _NoModules()
    with torch.no_grad(), counter:
        twin(*given)
    return counter.get_total_flops()


class _NoModules(contextlib.nullcontext):
    """In place of what tells modules apart, whose hooks would make them compute otherwise."""

    parents = ("Global",)


def _without_values(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose parameters and buffers take no memory."""
    twins: dict[int, Any] = {}
    for p in model.parameters():
        twins[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False)
    for buffer in model.buffers():
        twins[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, twins).eval()


def _cache_bytes(model: Any, tokens: Tensor) -> int:
    if not getattr(model, "is_causal", False):
        return 0
    # the meta device allocates nothing, so that any length can be asked for
    return model.make_cache(*tokens.shape, device="meta").num_bytes
