"""Linear: one row takes another way to the same numbers."""

import pytest
import torch

from foveal.layers.linear import Linear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("features", [6, 7])
def test_one_row_is_a_row_of_many(bias, features):
    """Whatever the shape and the width, with and without gradients."""
    layer = Linear(5, features, bias).double()
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    want = layer(x)
    with torch.no_grad():
        for one in (x[:1, :1], x[0, 0]):
            assert layer(one).shape == (*one.shape[:-1], features)
            torch.testing.assert_close(layer(one).flatten(), want[0, 0], rtol=0, atol=1e-14)
    layer(x[:1, :1]).sum().backward()
    assert layer.weight.grad.any()
