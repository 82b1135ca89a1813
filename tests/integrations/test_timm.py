"""timm: its layers, networks and registry beside ours (`make test-integrations`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import foveal
from foveal.common.packages import how_to_get

timm = pytest.importorskip("timm", reason=f"timm is not installed: {how_to_get('timm')}")

from timm import data, optim, utils  # noqa: E402
from timm.layers.halo_attn import HaloAttn  # noqa: E402

import foveal.integrations.timm  # noqa: E402


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"stride": 2, "avg_down": True},
        {"qkv_bias": True, "dim_head": 16, "scale_pos_embed": True},
        {"dim_out": 48, "qk_ratio": 0.34},
    ],
    ids=["plain", "strided", "pooled", "biased", "narrow"],
)
def test_a_layer(options: dict[str, Any]) -> None:
    """HaloAttn: interleaved keys and values, padding that attends, its own offsets; gradients."""
    sizes: dict[str, Any] = {"block_size": 4, "halo_size": 1, "num_heads": 4}
    theirs = HaloAttn(32, **sizes, **options)
    known = {k: options[k] for k in ("stride", "avg_down", "scale_pos_embed") if k in options}
    ours = foveal.load_upstream(theirs.state_dict(), config={**sizes, **known})
    a = torch.randn(2, 32, 8, 12, requires_grad=True)
    b = a.detach().clone().requires_grad_()
    one, other = theirs(a), ours(b)
    assert_close(other, one, rtol=1e-4, atol=1e-5)
    gradient = torch.randn_like(one)
    one.backward(gradient)
    other.backward(gradient)
    assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-5)


# -- our models under timm's names: what timm asks of its own ------------------------------------

NAMES = foveal.integrations.timm.register()
SMALL = ("foveal_halonet_cifar", "foveal_sepvit_cifar")


def small(name: str, **options: Any) -> Any:
    """A model of timm, with the same weights each time, in evaluation mode."""
    torch.manual_seed(0)
    return timm.create_model(name, **options).eval()


def test_names() -> None:
    """Every named image model of foveal has one, filters find them, and a near one is told."""
    assert set(timm.list_models("foveal_*")) == set(NAMES)
    assert {"foveal_halonet_h1", "foveal_sepvit_tiny"} <= set(NAMES)
    assert timm.list_models("*foveal_sepvit*") == [one for one in NAMES if "sepvit" in one]
    assert foveal.integrations.timm.register() == NAMES
    with pytest.raises(ValueError, match="drop_path_rat'; did you mean 'drop_path_rate'"):
        timm.create_model(SMALL[0], drop_path_rat=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_is_true(name: str) -> None:
    """Layers that it names exist; maps and heads have its sizes, and after a reset, too."""
    model = timm.create_model(name, device="meta").eval()
    cfg, state = model.default_cfg, model.state_dict()
    assert state[f"{cfg['first_conv']}.weight"].shape[1] == cfg["input_size"][0] == model.in_chans
    assert state[f"{cfg['classifier']}.weight"].shape[0] == cfg["num_classes"] > 0
    x = torch.empty(2, *cfg["input_size"], device="meta")
    maps = model.forward_features(x)
    assert maps.shape == (2, model.num_features, *cfg["pool_size"])
    features = model.forward_head(maps, pre_logits=True)
    assert features.shape == (2, model.head_hidden_size)
    assert model.forward_head(maps).shape == (2, cfg["num_classes"])
    model.reset_classifier(0)
    assert model.forward_head(maps).shape == features.shape
    model.reset_classifier(0, "")
    assert model.forward_head(maps).shape == maps.shape
    assert model.forward_head(maps, pre_logits=True).shape == maps.shape
    assert data.resolve_data_config(model=model)["input_size"] == cfg["input_size"]


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns(name: str) -> None:
    """A loss of 42 classes reaches each of them, and is finite."""
    model = timm.create_model(name, num_classes=42, img_size=64).train()
    out = model(torch.randn(2, 3, 64, 48))
    assert out.shape == (2, 42)
    out.mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert out.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_features(name: str) -> None:
    """Each stage has the channels and the size that feature_info tells; no parameter is idle."""
    model = timm.create_model(name, features_only=True, device="meta")
    side = model.pretrained_cfg["input_size"][1]
    maps = model(torch.empty(1, 3, side, side, device="meta"))
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    sizes = [-(-side // reduction) for reduction in model.feature_info.reduction()]
    assert [tuple(m.shape[2:]) for m in maps] == [(one, one) for one in sizes]
    assert not any("head" in name for name, _ in model.named_parameters())


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("kind", ["getter", "list", "dict", "hook"])
def test_classes_of_features(name: str, kind: str) -> None:
    """Chosen stages are those of the whole model, and what comes after them is gone."""
    whole, x = small(name), torch.randn(2, 3, 41, 30)
    few = small(name, features_only=True, out_indices=(0, -2), feature_cls=kind)
    found = few(x)
    found = list(found.values()) if isinstance(found, dict) else found
    maps = whole.forward_intermediates(x, [0, 1], intermediates_only=True)
    for one, other in zip(found, maps, strict=True):
        assert_close(one, other)
    assert few.feature_info.module_name() == ["stages.0", "stages.1"]
    count = sum(p.numel() for p in whole.stem.parameters())
    count += sum(p.numel() for p in whole.stages[:2].parameters())
    assert sum(p.numel() for p in few.parameters()) == count


@pytest.mark.parametrize("name", SMALL)
def test_intermediates_and_checkpointing(name: str) -> None:
    """forward_intermediates ends where forward_features does, also when stages are recomputed."""
    model, x = small(name), torch.randn(1, 3, 32, 47)
    bare = small(name, num_classes=0, global_pool="")
    assert bare(x).shape == model.forward_features(x).shape
    last, maps = model.forward_intermediates(x)
    assert_close(last, model.forward_features(x))
    info = timm.models.FeatureInfo(model.feature_info, len(model.feature_info))
    assert info.channels() == [one.shape[1] for one in maps]
    model.set_grad_checkpointing()
    assert_close(model.forward_intermediates(x)[0], last)
    for wrong in (0, 4):
        with pytest.raises(ValueError, match="indices must be 1 to 3"):
            model.forward_intermediates(x, wrong)


@pytest.mark.parametrize("name", SMALL)
def test_pools(name: str) -> None:
    """The pools of timm, with as many features as the head is made for."""
    for kind in ("avg", "max", "avgmax", "catavgmax"):
        model = small(name, num_classes=7, global_pool=kind)
        x = torch.randn(2, 3, 32, 32)
        maps = model.forward_features(x)
        pool = timm.layers.SelectAdaptivePool2d(pool_type=kind, flatten=True)
        assert_close(model.forward_head(maps, pre_logits=True), pool(maps))
        assert model(x).shape == (2, 7)
        model.reset_classifier(3, "avg")
        assert model(x).shape == (2, 3)


@pytest.mark.parametrize("name", SMALL)
def test_weights_of_a_file(name: str, tmp_path: Path) -> None:
    """checkpoint_path loads all; pretrained weights fit other channels and other classes."""
    model, path = small(name), tmp_path / "weights.pth"
    nested = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": nested, "arch": name}, path)
    x = torch.randn(1, 3, 32, 32)
    assert_close(small(name, checkpoint_path=path)(x), model(x))
    torch.save(model.state_dict(), path)
    overlay = {"file": str(path)}
    grey = small(name, pretrained=True, pretrained_cfg_overlay=overlay, in_chans=1, num_classes=5)
    assert grey(x[:, :1]).shape == (1, 5)
    first = f"{model.default_cfg['first_conv']}.weight"
    summed = model.state_dict()[first].sum(1, keepdim=True)
    assert_close(grey.state_dict()[first], summed)
    five = small(name, pretrained=True, pretrained_cfg_overlay=overlay, in_chans=5, img_size=64)
    assert five(torch.randn(1, 5, 40, 33)).shape == (1, 10)
    assert_close(five.state_dict()["head.weight"], model.head.weight)


def test_a_pruned_model_is_saved(tmp_path: Path) -> None:
    """Its configuration is that of a model of as many stages, which returns their maps."""
    for name in SMALL:
        model, x = small(name), torch.randn(1, 3, 32, 32)
        model.prune_intermediate_layers([1], prune_norm=True)
        model.save_pretrained(tmp_path)
        (again,) = foveal.load_model(tmp_path)(x)
        assert_close(again, model(x)[0])


@pytest.mark.parametrize("name", SMALL)
def test_as_train_scripts_use_it(name: str) -> None:
    """Layer-wise rates in the order of depth, averages of weights, a step of its optimizer."""
    model = small(name, num_classes=4, drop_path_rate=0.3, drop_rate=0.1).train()
    model.set_grad_checkpointing(enable=True)
    without = model.no_weight_decay()
    groups = optim.param_groups_layer_decay(model, 0.05, without, layer_decay=0.5)
    assert sum(len(one["params"]) for one in groups) == len(list(model.parameters()))
    scale = {id(p): one["lr_scale"] for one in groups for p in one["params"]}
    named = dict(model.named_parameters())
    # sorted as they are applied, but for the convolution after a stage's first block
    order = [key for key in named if named[key].ndim > 1 and ".peg." not in key]
    scales = [scale[id(named[key])] for key in order]
    assert scales == sorted(scales)
    assert scales[0] < 0.1 < scales[-1] == 1
    decayed = {id(p) for one in groups if one["weight_decay"] for p in one["params"]}
    assert not any(id(named[key]) in decayed for key in without)
    average = utils.ModelEmaV3(model, decay=0.5)
    optimizer = optim.create_optimizer_v2(model, "adamw", lr=1e-3, layer_decay=0.7)
    before = model.head.weight.detach().clone()
    loss = nn.functional.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4))
    loss.backward()
    optimizer.step()
    average.update(model)
    assert not torch.equal(before, model.head.weight)
