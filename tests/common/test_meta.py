"""Modules without memory."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from foveal.common.meta import draw_truncated, on_meta
from foveal.integrations import natten

CODE = """
import sys
from torch import nn
from foveal.common.meta import on_meta
import foveal, foveal.models

with on_meta():
    layer = nn.Sequential(nn.Linear(10**6, 10**6), nn.Conv2d(3, 4, 5), nn.Embedding(10**9, 10))
    for name in ("transformer_tiny", "halonet_h0", "sepvit_lite"):
        model = foveal.create_model(name)
        assert {p.device.type for p in model.parameters()} == {"meta"}, name
print(sum(p.numel() for p in layer.parameters()), "torch._dynamo" in sys.modules)
"""


def test_they_have_sizes_and_cost_nothing(after_torch):
    """Layers and models of any size are made at once, and the compiler is not imported."""
    assert after_torch(CODE).split() == [str(10**12 + 10**6 + 304 + 10**10), "False"]


def test_the_initialisation_is_skipped_and_the_generator_left_alone():
    """What is drawn afterwards is as if nothing had been made."""
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with on_meta():
        layer = nn.Linear(3, 3)
        nn.init.trunc_normal_(layer.weight)
        nn.init.uniform_(layer.bias)
    assert torch.equal(torch.rand(3), expected)
    with pytest.raises(NotImplementedError):
        layer.weight.tolist()
    assert nn.Linear(2, 2).weight.device.type == "cpu"


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_table_that_is_cut_has_fake_tensors(dims):
    """Where no number can be looked at; elsewhere the numbers are those of torch."""
    make = getattr(natten, f"NeighborhoodAttention{dims}D")
    with FakeTensorMode():
        table = make(8, 2, 3, rel_pos_bias=True).rpb
    assert isinstance(table, FakeTensor)
    assert table.shape == (2, *[5] * dims)
    torch.manual_seed(dims)
    found = draw_truncated(torch.empty(7, 9), std=0.02)
    torch.manual_seed(dims)
    assert torch.equal(found, nn.init.trunc_normal_(torch.empty(7, 9), std=0.02))
