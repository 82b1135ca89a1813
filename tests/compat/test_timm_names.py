"""Networks under timm's names without timm: what is written is read again, and what is refused."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

import foveal
from foveal.compat.timm_networks import ARCHITECTURES
from foveal.models import HaloNet
from foveal.testing import assert_close

THEIRS = {"padding": "attend", "true_offsets": False, "num_classes": 5}


def narrow(name: str, **options: Any) -> HaloNet:
    """A network of a kind, an eighth as wide and two blocks a stage."""
    torch.manual_seed(0)
    known = dict(ARCHITECTURES[name])
    known["dims"] = tuple(max(16, dim // 8) for dim in known.get("dims", (64, 128, 256, 512)))
    known["stem_dims"] = tuple(dim // 4 for dim in known.get("stem_dims", ()))
    known |= {"image_size": 64, "final_dim": None, "dim_head": None, "group_width": 0}
    return HaloNet(**{**known, **THEIRS, **options}).eval()


@pytest.mark.parametrize("name", ["halonet26t", "sehalonet33ts", "halo2botnet50ts", "halonet_h1"])
def test_there_and_back(name: str) -> None:
    """A network is the same after it went by way of timm's names, on an image of odd size."""
    model = narrow(name)
    again = foveal.load_upstream(foveal.save_upstream(model), config={"architecture": name})
    assert again.settings.mixers == tuple(
        tuple(model.settings.mixer(stage, block) for block in range(depth))
        for stage, depth in enumerate(model.settings.depths)
    )
    x = torch.randn(1, 3, 61, 45)
    with torch.no_grad():
        assert_close(again(x), model(x), 1e-6)


def test_a_checkpoint_of_a_training_script(tmp_path: Path) -> None:
    """It names the network; arguments in a Namespace execute nothing, and are read past."""
    model, path = narrow("halonet26t"), tmp_path / "last.pth.tar"
    weights = {f"module.{key}": value for key, value in foveal.save_upstream(model).items()}
    beside = {"arch": "halonet26t", "args": argparse.Namespace(lr=0.1), "epoch": 3}
    torch.save({"state_dict": weights, "state_dict_ema": dict(weights), **beside}, path)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert_close(foveal.load_upstream(path)(x), model(x), 1e-6)


def test_unknown_keywords_are_named() -> None:
    """With the nearest one."""
    weights = foveal.save_upstream(narrow("halonet26t"))
    with pytest.raises(ValueError, match="no option 'block_sise'; did you mean 'block_size'"):
        foveal.load_upstream(weights, config={"architecture": "halonet26t", "block_sise": 8})


def test_corrected_mathematics_do_not_go_back() -> None:
    """timm would compute something else with the weights of a network that masks the border."""
    model = narrow("halonet26t", padding="mask")
    with pytest.raises(ValueError, match="timm computes padding='attend' alone"):
        foveal.save_upstream(model)
    with pytest.raises(ValueError, match="timm"):
        foveal.save_upstream(foveal.create_model("halonet_cifar"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mixers": (("halo",),)}, "mixers must have an entry for each of the 4 stages"),
        ({"mixers": (("hallo",), ("conv",), ("conv",), ("conv",))}, "mixers"),
        ({"bottleneck_ratio": (1.0, 2.0)}, "bottleneck_ratio must be a number or 4"),
        ({"act": "gelu"}, "act must be"),
        ({"stem_dims": (8, 0)}, "stem_dims must have entries of at least 1"),
        ({"image_size": 0}, "image_size"),
        ({"dim_head": 0}, "dim_head must be a positive int"),
        ({"inverted": 0.0}, "inverted must be more than 0"),
        ({"stem_dims": (8,), "stem_stride": 4}, "stem_stride must be 2 with stem_dims"),
        ({"stem_dims": (8, 8), "stem_stride": 1}, "stem_stride must be 2 or 4"),
        ({"stem_dims": (8, 8), "stem_stride": 3}, "stem_stride must be 2 or 4"),
        ({"conv_stages": (0,), "group_width": 5}, "group_width must divide .* for 64 to 64"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    """One line with the name of the option and what was expected."""
    with pytest.raises(ValueError, match=message):
        HaloNet(**options)
