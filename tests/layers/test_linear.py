"""Linear: the same numbers for few rows as for many."""

import pytest
import torch
from torch import nn

from foveal.layers.linear import Linear


@pytest.mark.parametrize("shape", [(1, 1, 6), (2, 2, 6), (4, 6), (6,), (5, 1, 6), (0, 1, 6)])
@pytest.mark.parametrize("sizes", [(6, 8, True), (6, 8, False), (6, 7, True)])
def test_equals_torch(shape, sizes):
    """While decoding and while training, with and without bias, at sizes that divide or not."""
    layer = Linear(*sizes).double()
    x = torch.randn(shape, dtype=torch.float64)
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert layer.float()(x.float()).dtype == torch.bfloat16
