"""Are two tensors equal up to rounding?"""

from __future__ import annotations

import torch
from torch import Tensor


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of `expected`, of any shape, in float64.

    Where `expected` is zero throughout, the root mean square of the difference itself.
    """
    if expected.numel() == 0:
        return 0.0
    actual, expected = actual.detach().double(), expected.detach().double()
    difference = (actual - expected).square().mean().sqrt()
    size = expected.square().mean().sqrt()
    return float(difference / size) if size > 0 else float(difference)


def assert_close(
    actual: Tensor, expected: Tensor, rtol: float = 1e-5, name: str = "tensor"
) -> None:
    """Check shape, infinities and values: relative root mean square at most `rtol`.

    One number for the whole tensor is stable where elements near zero are not. Infinities (the
    log-sum-exp of an empty row) must stand in the same places with the same sign; NaN never
    passes. The comparison is made in float64 on the CPU, so types and devices may differ.

    Args:
        actual, expected: tensors of the same shape.
        rtol: largest relative root mean square.
        name: what to call the tensor in the message.

    Raises:
        AssertionError: naming the tensor, the error, and the worst element.
    """
    actual, expected = actual.detach().cpu().double(), expected.detach().cpu().double()
    if actual.shape != expected.shape:
        raise AssertionError(
            f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
        )
    finite = expected.isfinite()
    same = (actual == expected) | (finite & actual.isfinite())
    if not bool(same.all()):
        at = tuple((~same).nonzero()[0].tolist())
        raise AssertionError(
            f"{name}: {int((~same).sum())} values are not finite or wrongly so, first at {at}: "
            f"{actual[at]}, expected {expected[at]}"
        )
    actual, expected = (x.masked_fill(~finite, 0.0) for x in (actual, expected))
    error = relative_rms(actual, expected)
    if not error <= rtol:
        worst = int((actual - expected).abs().argmax())
        at = tuple(
            int(i) for i in torch.unravel_index(torch.tensor(worst, device="cpu"), actual.shape)
        )
        raise AssertionError(
            f"{name}: relative RMS {error:.3g} exceeds {rtol:.3g}; worst at {at}: "
            f"{actual[at]:.8g}, expected {expected[at]:.8g}"
        )
