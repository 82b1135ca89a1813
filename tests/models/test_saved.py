"""Checkpoints written by an earlier version load, and compute what they computed then.

    python tests/models/test_saved.py NAME ...    # adds cases of the zoo; what is there stays

A folder of tests/models/saved holds a model in float16 as `save_pretrained` wrote it, and in
`call.safetensors` inputs and the output of that version. Sums run in float64, so that every
machine agrees. Where a change must break one of them, it says so in the changelog.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from zoo import CASES

from foveal.models import load_model
from foveal.models.registry import _families

SAVED = Path(__file__).parent / "saved"


def computed(model: nn.Module, name: str, inputs: list[Tensor]) -> Tensor:
    """What a model makes of inputs, in float64 and without a random number."""
    model = model.double().eval()
    inputs = [x.double() if x.is_floating_point() else x for x in inputs]
    with torch.no_grad():
        if name == "discrete vae":
            return model.decode(model.get_codebook_indices(*inputs))
        return CASES[name](model, *inputs)


def write(names: list[str]) -> None:
    for name in names:
        case, folder = CASES[name], SAVED / name.replace(" ", "-")
        model, inputs = case.make(), list(case.inputs())
        with torch.no_grad():  # so that every weight matters, those that begin at zero too
            for p in model.parameters():
                p += 0.3 * torch.randn_like(p)
        model = model.half()
        model.save_pretrained(folder)
        call = {f"input{at}": x for at, x in enumerate(inputs)}
        call["output"] = computed(model, name, inputs).float().contiguous()
        save_file(call, folder / "call.safetensors")


def test_every_family_is_here() -> None:
    """The list of checkpoints has one of each family that is registered."""
    assert {load_model(folder).family for folder in SAVED.iterdir()} == set(_families)


@pytest.mark.parametrize("folder", sorted(SAVED.iterdir()), ids=lambda folder: folder.name)
def test_saved_before(folder: Path) -> None:
    """A checkpoint of each family loads, and gives the outputs of the version that wrote it."""
    name = folder.name.replace("-", " ")
    call = load_file(folder / "call.safetensors")
    out = computed(load_model(folder), name, [call[at] for at in sorted(call) if at != "output"])
    assert out.shape == call["output"].shape
    assert (out - call["output"]).abs().max() <= 1e-6 * max(1.0, float(out.abs().max()))


if __name__ == "__main__":
    write(sys.argv[1:])
