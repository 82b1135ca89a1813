"""Windows as natten describes them: one value for each axis, or one for all."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from foveal.common.memo import remember
from foveal.patterns import Neighborhood
from foveal.patterns.sizes import each, each_bool


class Rule(NamedTuple):
    """The window of a token: each a value for every axis."""

    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    is_causal: tuple[bool, ...]

    @classmethod
    def of(
        cls, axes: int, kernel_size: Any, stride: Any = 1, dilation: Any = 1, is_causal: Any = None
    ) -> Rule:
        """A rule from ints, bools or one for each axis; None is natten's default.

        Raises:
            ValueError: a wrong number or kind of values, or a stride above its kernel.
        """
        causal = each_bool(False if is_causal is None else is_causal, "is_causal", axes)
        rule = cls(
            each(kernel_size, "kernel_size", axes),
            each(1 if stride is None else stride, "stride", axes),
            each(1 if dilation is None else dilation, "dilation", axes),
            causal if isinstance(causal, tuple) else (causal,) * axes,
        )
        if any(s > k for s, k in zip(rule.stride, rule.kernel_size, strict=True)):
            raise ValueError(
                "stride must be at most kernel_size on every axis, got "
                f"stride={rule.stride}, kernel_size={rule.kernel_size}."
            )
        return rule

    def check_size(self, size: tuple[int, ...], shape: tuple[int, ...]) -> None:
        """Raise ValueError if a window does not fit into tokens of a tensor of this shape."""
        if self._fits(size):
            return
        axes, hint = len(size), ""
        if self._fits(shape[2 : 2 + axes]):
            hint = f"; if heads come first in {shape}, x.movedim(1, -2) is natten's layout."
        raise ValueError(
            "kernel_size * dilation must be at most the size of the tokens on every axis, got "
            f"kernel_size={self.kernel_size}, dilation={self.dilation} for {size}{hint or '.'}"
        )

    def _fits(self, size: tuple[int, ...]) -> bool:
        rules = zip(self.kernel_size, self.dilation, size, strict=True)
        return all(kernel * step <= side for kernel, step, side in rules)

    def pattern(self, size: tuple[int, ...]) -> Neighborhood:
        """The same as a pattern over tokens of this size, that of the call before if it fits."""
        if torch.compiler.is_compiling():
            return _pattern(*self, size)
        return _kept(*self, size)


def _pattern(
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
    is_causal: tuple[bool, ...],
    size: tuple[int, ...],
) -> Neighborhood:
    return Neighborhood(
        size, kernel_size, dilation, causal=is_causal, border="shift", stride=stride
    )


_kept = remember(entries=256)(_pattern)
