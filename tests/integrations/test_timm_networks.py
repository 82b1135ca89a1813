"""Whole networks of timm, converted with their weights: outputs, gradients, any size, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import foveal
from foveal.common.packages import how_to_get

timm = pytest.importorskip("timm", reason=f"timm is not installed: {how_to_get('timm')}")

from timm.layers.bottleneck_attn import BottleneckAttn  # noqa: E402

NETWORKS = (
    "halonet26t",
    "halonet50ts",
    "sehalonet33ts",
    "halo2botnet50ts_256",
    "eca_halonext26ts",
    "haloregnetz_b",
    "halonet_h1",
    "botnet26t_256",
    "sebotnet33ts_256",
)


def theirs(name: str, **options: Any) -> nn.Module:
    """A network of timm with statistics, gains and positions that are not those of the start."""
    torch.manual_seed(0)
    side = 224 if name == "haloregnetz_b" else 256
    model = timm.create_model(name, **{"num_classes": 10, "img_size": side, **options}).eval()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.1)
            nn.init.normal_(part.running_mean, std=0.1)
            nn.init.uniform_(part.running_var, 0.5, 1.5)
    return model


def narrow(name: str, **options: Any) -> nn.Module:
    """The same at an eighth of the width, but for a network whose groups that would not fit."""
    fits = "eca" not in name and "regnetz" not in name
    return theirs(name, **({"width_factor": 0.125} if fits else {}), **options)


def image(name: str, chans: int = 3) -> Tensor:
    side = 224 if name == "haloregnetz_b" else 256
    return torch.randn(1, chans, side, side)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network(name: str) -> None:
    """Outputs and gradients of the image are theirs; the weights go back as they came."""
    model, x = narrow(name).double(), image(name).double()
    ours = foveal.load_upstream(model)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    one, other = model(a), ours(b)
    assert_close(other, one, rtol=1e-7, atol=1e-7)
    one.square().sum().backward()
    other.square().sum().backward()
    assert_close(b.grad, a.grad, rtol=1e-5, atol=1e-7 * float(a.grad.abs().max()))
    assert [key for key, p in ours.named_parameters() if p.grad is None] == []
    back = foveal.save_upstream(ours)
    state = model.state_dict()
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], value) for key, value in state.items())


def test_halonet26t_at_full_size() -> None:
    """Weights alone tell which network it is; 250 x 230 runs with either mathematics."""
    model, x = theirs("halonet26t", num_classes=1000), image("halonet26t")
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    with torch.no_grad():
        ours = foveal.load_upstream({"state_dict": state, "epoch": 3})
        assert_close(ours(x), model(x), rtol=1e-4, atol=1e-4)
        assert ours(x[..., :250, :230]).isfinite().all()
        corrected = foveal.load_upstream(model, compat=None)
        assert corrected(x[..., :250, :230]).shape == (1, 1000)
        assert not torch.allclose(corrected(x), model(x), atol=1e-4)
    with pytest.raises(ValueError, match="timm computes padding='attend' alone"):
        foveal.save_upstream(corrected)


@pytest.mark.parametrize("name", ["halonet50ts", "sehalonet33ts", "halo2botnet50ts_256"])
def test_which_network_weights_are_of(name: str) -> None:
    """By their shapes, or by name where the widths are others; what differs is no such network."""
    state = theirs(name, device="meta").state_dict()
    state = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in state.items()}
    found = foveal.load_upstream(state).settings
    named = foveal.load_upstream(state, config={"architecture": name.partition("_")[0]}).settings
    assert found == named
    assert found.act == "silu"
    few = narrow(name).state_dict()
    with pytest.raises(ValueError, match="cannot tell the activation"):
        foveal.load_upstream(few)
    assert foveal.load_upstream(few, config={"architecture": name}).settings.act == "silu"
    with pytest.raises(ValueError, match="unknown architecture 'halonet26'; did you mean"):
        foveal.load_upstream(few, config={"architecture": "halonet26"})
    with pytest.raises(ValueError, match="is no botnet26t: its blocks are"):
        foveal.load_upstream(few, config={"architecture": "botnet26t"})


@pytest.mark.parametrize("size", [(250, 230), (64, 33), (320, 288)])
def test_any_size_of_image(size: tuple[int, int]) -> None:
    """Larger, smaller and odd images, with map attention, features and gradients."""
    model = foveal.load_upstream(narrow("halo2botnet50ts_256"), compat=None).train()
    out = model(torch.randn(2, 3, *size))
    out.sum().backward()
    assert out.isfinite().all()
    assert all(p.grad is not None for p in model.parameters())
    maps = model.forward_intermediates(torch.randn(1, 3, *size), intermediates_only=True)
    for one, info in zip(maps, model.feature_info, strict=True):
        assert one.shape[1] == info["num_chs"]
        assert one.shape[2] == -(-size[0] // info["reduction"])


@pytest.mark.parametrize(
    "options", [{"in_chans": 1}, {"in_chans": 5, "num_classes": 0}, {"drop_rate": 0.3}]
)
def test_other_ends(options: dict[str, Any], tmp_path: Path) -> None:
    """Other channels, no classifier and then another one, in files of both packages."""
    model = narrow("sehalonet33ts", **options).double()
    x = image("", options.get("in_chans", 3))[..., :128, :128].double()
    ours = foveal.load_upstream(model)
    with torch.no_grad():
        # maps of the last stage are 4 x 4, which timm takes for no block
        same = torch.nn.functional.interpolate(x, (256, 256))
        assert_close(ours(same), model(same), rtol=1e-7, atol=1e-7)
    assert ours.num_classes == model.num_classes
    ours.save_pretrained(tmp_path)
    assert torch.equal(foveal.load_model(tmp_path)(x), ours(x))
    ours.reset_classifier(4)
    assert ours(x.contiguous(memory_format=torch.channels_last)).shape == (1, 4)
    assert ours.bfloat16()(x.bfloat16()).isfinite().all()


def test_half_precision_weights() -> None:
    """They stay as they are."""
    ours = foveal.load_upstream(narrow("halonet26t").half())
    assert {p.dtype for p in ours.parameters()} == {torch.float16}


@pytest.mark.parametrize("name", ["lambda_resnet26t", "lamhalobotnet50ts_256"])
def test_lambda_layers_are_refused(name: str) -> None:
    """In one line that names them."""
    model = timm.create_model(name, device="meta", img_size=256)
    with pytest.raises(ValueError, match="has lambda layers"):
        foveal.load_upstream(model)


def test_other_networks_are_refused() -> None:
    """A network without such attention is told apart, and other activations are."""
    with pytest.raises(ValueError, match="cannot tell which package wrote the ResNet"):
        foveal.load_upstream(timm.create_model("resnet18", device="meta"))
    with pytest.raises(ValueError, match=r"has ReLU or SiLU, this ByobNet \{'GELU'\}"):
        foveal.load_upstream(theirs("halonet26t", act_layer="gelu", device="meta"))


@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2}, {"qkv_bias": True, "dim_head": 16, "scale_pos_embed": True}],
    ids=["plain", "pooled", "biased"],
)
def test_a_bottleneck_layer(options: dict[str, Any]) -> None:
    """BottleneckAttn: outputs and gradients, and its weights back."""
    layer = BottleneckAttn(32, feat_size=(6, 10), **options)
    known = {k: v for k, v in options.items() if k in ("stride", "scale_pos_embed")}
    ours = foveal.load_upstream(layer, config=known)
    a = torch.randn(2, 32, 6, 10, requires_grad=True)
    b = a.detach().clone().requires_grad_()
    one, other = layer(a), ours(b)
    assert_close(other, one, rtol=1e-4, atol=1e-5)
    (one.square().sum() + other.square().sum()).backward()
    assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-4)
    back = foveal.save_upstream(ours[0] if "stride" in options else ours)
    assert all(torch.equal(back[key], value) for key, value in layer.state_dict().items())
