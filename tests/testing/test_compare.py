"""assert_close: passes what is equal up to rounding, and says what is not."""

import math

import pytest
import torch

from foveal.testing import assert_close, relative_rms


def test_passes_small_errors_and_fails_larger_ones():
    """The relative root mean square decides, and the message names the tensor and the place."""
    expected = torch.linspace(-1, 1, 101).reshape(1, 101)
    assert_close(expected + 1e-6, expected, 1e-5)
    wrong = expected.clone()
    wrong[0, 7] += 0.5
    with pytest.raises(AssertionError, match=r"grad of q: relative RMS .* worst at \(0, 7\)"):
        assert_close(wrong, expected, 1e-3, name="grad of q")


def test_infinities_have_to_agree():
    """-inf against -inf is equal; against a number, NaN or +inf it is not."""
    expected = torch.tensor([1.0, -math.inf])
    assert_close(expected.clone(), expected)
    for wrong in (0.0, math.inf, math.nan):
        with pytest.raises(AssertionError, match="lse"):
            assert_close(torch.tensor([1.0, wrong]), expected, name="lse")
    with pytest.raises(AssertionError, match="not finite"):
        assert_close(torch.tensor([math.nan]), torch.tensor([1.0]))


def test_shapes_dtypes_and_empty_tensors():
    """Shapes must agree; types need not; nothing equals nothing."""
    with pytest.raises(AssertionError, match=r"shape \(2,\), expected \(3,\)"):
        assert_close(torch.ones(2), torch.ones(3))
    assert_close(torch.ones(2).half(), torch.ones(2).double())
    assert_close(torch.ones(0), torch.ones(0))
    assert_close(torch.zeros(3), torch.zeros(3))
    assert relative_rms(torch.full((4,), 3.0), torch.zeros(4)) == 3.0
