"""Projections: the same numbers for few rows as for many, and which layers are plain."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from foveal.layers.linear import is_plain, linear, project


@pytest.mark.parametrize("shape", [(1, 1, 6), (2, 2, 6), (4, 6), (6,), (5, 1, 6), (0, 1, 6)])
@pytest.mark.parametrize("sizes", [(6, 8, True), (6, 8, False), (6, 7, True)])
def test_equals_torch(shape, sizes):
    """While decoding and while training, with and without bias, at sizes that divide or not."""
    layer = nn.Linear(*sizes).double()
    x = torch.randn(shape, dtype=torch.float64)
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(project(layer, x), expected, rtol=0, atol=0)
    with torch.no_grad():
        torch.testing.assert_close(project(layer, x), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert project(layer.float(), x.float()).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 4, 5, 300])
def test_half_precision(rows, dtype):
    """As exact as torch's own product or better, in its dtype, with gradients in that dtype."""
    layer, x = nn.Linear(16, 12).to(dtype), torch.randn(rows, 16).to(dtype).requires_grad_()
    out = project(layer, x)
    want = nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double())
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), want, rtol=2 * torch.finfo(dtype).eps, atol=2e-2)
    out.float().square().sum().backward()
    assert x.grad.dtype == layer.weight.grad.dtype == layer.bias.grad.dtype == dtype
    with torch.no_grad():
        assert linear(x, layer.weight).dtype == dtype


def test_several_modules():
    """A Sequential of plain modules goes one by one; a hook on it, or on a part, is called."""
    layer, x, seen = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0)), torch.randn(3, 4), []
    want = layer(x)
    torch.testing.assert_close(project(layer, x), want)
    for module in (layer, layer[0]):
        handle = module.register_forward_hook(lambda *a: seen.append(a[0]))
        torch.testing.assert_close(project(layer, x), want)
        handle.remove()
    assert seen == [layer, layer[0]]


class Wrapped(nn.Module):
    """What adapters do: a Linear inside, with its weight and bias in sight."""

    def __init__(self, base):
        super().__init__()
        self.base, self.weight, self.bias = base, base.weight, base.bias

    def forward(self, x):
        return self.base(x)


class Double(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Subclass(torch.Tensor):
    """As quantised and distributed weights are."""


def _patched(layer):
    layer.forward = lambda x: x
    return layer


def _weighing(layer):
    layer.weight = nn.Parameter(layer.weight.detach().as_subclass(Subclass))
    return layer


def _hooked(layer, register, hook=lambda *a: None):
    getattr(layer, register)(hook)
    return layer


CHANGED = {
    "wrapped": Wrapped,
    "subclass": lambda layer: Double(2, 2),
    "patched": _patched,
    "weight of another kind": _weighing,
    "forward hook": lambda layer: _hooked(layer, "register_forward_hook"),
    "pre-hook": lambda layer: _hooked(layer, "register_forward_pre_hook"),
    "backward hook": lambda layer: _hooked(layer, "register_full_backward_hook"),
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "spectral norm": parametrizations.spectral_norm,
    "parametrised": lambda layer: parametrize.register_parametrization(
        layer, "weight", nn.Identity()
    ),
}


@pytest.mark.parametrize("change", CHANGED)
def test_changed_layers_are_not_plain(change):
    """A layer that does more than its formula is never replaced by it."""
    assert not is_plain(CHANGED[change](nn.Linear(2, 2)))


def test_plain_layers():
    """Linear layers as they are built, on any device; other kinds where the caller knows them."""
    assert is_plain(nn.Linear(2, 2))
    assert is_plain(nn.Linear(2, 2, device="meta"))
    assert is_plain(nn.Conv1d(2, 2, 1), nn.Conv1d)
    assert not is_plain(nn.Conv1d(2, 2, 1))
    handle = nn.modules.module.register_module_forward_hook(lambda *a: None)
    assert not is_plain(nn.Linear(2, 2))
    handle.remove()
    assert is_plain(nn.Linear(2, 2))
