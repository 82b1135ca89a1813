"""What holds for a model of every family: wrapped layers, devices, modes, copies, files."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from zoo import CASES, Case

from foveal.models.registry import _families

each = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())

TINY_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding)


def projections(model: nn.Module) -> dict[str, nn.Module]:
    """Layers with a weight that is trained, by name; a frozen VAE is not asked."""
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, TINY_LAYERS) and not name.startswith("vae.")
    }


def run(case: Case, model: nn.Module, *inputs: Tensor) -> Tensor:
    """The same random numbers for every run."""
    torch.manual_seed(7)
    return case(model, *inputs)


def test_every_family_is_here():
    """A family that is registered is tested by this module."""
    found = {case.make().family for case in CASES.values()}
    assert found == set(_families)


@each
def test_every_projection_is_called(case):
    """A hook on any projection runs: no weight is multiplied behind its module's back."""
    model, calls = case.make(), set()
    layers = projections(model)
    for name, layer in layers.items():
        layer.register_forward_hook(lambda *_, name=name: calls.add(name))
    run(case, model)
    missing = {name for name in layers.keys() - calls if not name.endswith((".to_q", ".to_kv"))}
    assert missing == set()


@each
def test_one_wrapped_projection_changes_what_it_should(case):
    """With a hook on one layer alone, the others compute what they did before."""
    model = case.make().eval()
    before = run(case, model)
    for name, layer in projections(model).items():
        with_hook = layer.register_forward_hook(lambda module, args, out: out + 0)
        assert torch.allclose(run(case, model), before, atol=1e-5), name
        with_hook.remove()
