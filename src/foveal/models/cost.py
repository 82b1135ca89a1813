"""What a model costs, from its shape alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from foveal.layers.checks import Device


class Measurable(Protocol):
    """What the cost of a model is read from: any causal model has it."""

    max_seq_len: int

    @property
    def num_parameters(self) -> int: ...

    @property
    def is_causal(self) -> bool: ...

    def flops(self, length: int) -> int: ...

    def make_cache(
        self, batch: int, max_length: int | None = None, device: Device = None
    ) -> Any: ...


@dataclass(frozen=True)
class Cost:
    """Cost of a model at one sequence length.

    Attributes:
        length: tokens of the sequence.
        parameters: trained values.
        flops_per_token: floating-point operations of a forward pass, over the tokens; a
            multiply-add counts as two, and attention counts the pairs that the pattern allows.
        cache_bytes_per_token: bytes of the decoding state at the end of the sequence, over the
            tokens; 0 where the model cannot be decoded token by token.
    """

    length: int
    parameters: int
    flops_per_token: float
    cache_bytes_per_token: float


def cost(model: Measurable, length: int | None = None) -> Cost:
    """Parameters, operations and cache of a model.

    Args:
        length: tokens of a sequence; the model's max_seq_len by default.

    Raises:
        ValueError: the length is not positive.
    """
    length = model.max_seq_len if length is None else length
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length=}.")
    return Cost(
        length,
        model.num_parameters,
        model.flops(length) / length,
        _cache_bytes(model, length) / length,
    )


def _cache_bytes(model: Measurable, length: int) -> int:
    if not model.is_causal:
        return 0
    # the meta device allocates nothing, so that any length can be asked for
    return model.make_cache(1, length, device="meta").num_bytes
