"""Weights belong to their modules: adapters, pruning, parametrisations, quantisation, modes."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from zoo import CASES

NAMES = (
    "transformer tied",
    "transformer pyramid",
    "hourglass linear",
    "hourglass relative",
    "hourglass windows",
    "htransformer reversible",
    "classifier cls",
    "seq2seq",
    "halonet",
    "halonet hybrid",
    "sepvit",
    "sepvit compact",
    "dalle",
    "dalle tied",
    "clip",
    "discrete vae",
)
each = pytest.mark.parametrize("case", [CASES[name] for name in NAMES], ids=NAMES)


class Adapter(nn.Module):
    """A low-rank correction around a layer, which shows the layer's weight as its own."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        dim_out, dim_in = base.weight.shape[:2]
        self.down = nn.Linear(dim_in, 2, bias=False)
        self.up = nn.Parameter(torch.zeros(dim_out, 2))

    weight = property(lambda self: self.base.weight)
    bias = property(lambda self: self.base.bias)

    def forward(self, x):
        return self.base(x) + self.down(x) @ self.up.T


def linears(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """(parent, name, layer) of each linear layer."""
    return [
        (parent, name, layer)
        for parent in model.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, nn.Linear)
    ]


def run(case, model):
    torch.manual_seed(7)
    return case(model)


@each
def test_adapters_are_called_and_learn(case):
    """An adapter around any linear layer, and around it alone, takes part and gets a gradient."""
    model = case.make().eval()
    before = run(case, model)
    for parent, name, layer in linears(model):
        adapter = Adapter(layer)
        setattr(parent, name, adapter)
        out = run(case, model)
        assert torch.allclose(out, before, atol=1e-5), name  # it starts with no effect
        out.square().sum().backward()
        assert adapter.up.grad is not None, name
        assert adapter.up.grad.isfinite().all()
        setattr(parent, name, layer)


def halve(module: nn.Module, name: str) -> None:
    class Half(nn.Module):
        def forward(self, x):
            return x / 2

    parametrize.register_parametrization(module, name, Half())


WRAPS = {
    "pruned": (
        lambda layer: prune.random_unstructured(layer, "weight", 0.3),
        lambda layer: prune.remove(layer, "weight"),
    ),
    "halved": (
        lambda layer: halve(layer, "weight"),
        lambda layer: parametrize.remove_parametrizations(layer, "weight"),
    ),
    "weight norm": (
        lambda layer: weight_norm(layer),
        lambda layer: parametrize.remove_parametrizations(layer, "weight"),
    ),
    "spectral norm": (
        lambda layer: spectral_norm(layer).eval(),
        lambda layer: parametrize.remove_parametrizations(layer, "weight"),
    ),
}


@pytest.mark.parametrize("kind", WRAPS)
@each
def test_reparametrised_weights(case, kind):
    """Pruned and parametrised layers compute with what their weight is now, and train on."""
    wrap, unwrap = WRAPS[kind]
    model = case.make().eval()
    layers = [layer for _, _, layer in linears(model)]
    for layer in dict.fromkeys(layers):
        wrap(layer)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(2):  # a weight of the step before would belong to a graph that is gone
        optimizer.zero_grad()
        run(case, model).square().mean().backward()
        optimizer.step()
    wrapped = run(case, model)
    for layer in dict.fromkeys(layers):
        unwrap(layer)
    assert torch.allclose(wrapped, run(case, model), atol=1e-5)


@each
def test_dynamic_quantisation(case):
    """All its linear layers are quantised, the model runs, and says nearly what it said."""
    model = case.make().eval()
    with torch.no_grad():
        before = run(case, model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            small = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
            after = run(case, small)
    assert not linears(small)
    assert after.shape == before.shape
    assert (after - before).abs().max() <= 0.1 * before.abs().max() + 0.05
