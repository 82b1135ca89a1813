"""HaloNet and both SepViTs: published sizes, any image, gradients, timm's conventions, files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from zoo import CASES

from foveal.models import (
    HaloNet,
    ImageModel,
    SepVisionTransformer,
    SepViT,
    cost,
    create_model,
    list_models,
    load_model,
)
from foveal.recipes.report import patterns_of
from foveal.testing import assert_close

HALONETS = {
    "halonet_h0": 5.49,
    "halonet_h1": 8.08,
    "halonet_h2": 9.39,
    "halonet_h3": 11.82,
    "halonet_h4": 19.08,
    "halonet_h5": 30.68,
    "halonet_h6": 43.43,
    "halonet_h7": 67.40,
    "halonet50": 18.02,
}
SEPVITS = {
    "sepvit_lite": (3_661_128, 0.57),
    "sepvit_tiny": (31_182_856, 4.52),
    "sepvit_small": (46_570_504, 7.46),
    "sepvit_base": (82_377_064, 13.05),
}


def small(kind: str, **options: Any) -> ImageModel:
    """A network of each family with all its parts, quick enough for tests."""
    torch.manual_seed(0)
    options = {"num_classes": 10, **options}
    if kind == "halonet":
        sizes = {"depths": (1, 2, 1), "dims": (16, 24, 32), "heads": (2, 2, 4), "stem_dim": 16}
        return HaloNet(**{**sizes, "strides": (1, 2, 2), "final_dim": 48, **options})
    if kind == "sepvit":
        sizes = {"depths": (1, 2, 2, 1), "dims": (8, 16, 32, 32), "heads": (1, 2, 2, 2)}
        return SepVisionTransformer(**{**sizes, **options})
    return SepViT(**{"dim": 8, "depth": (1, 2, 1), "heads": (1, 2, 2), "dim_head": 8, **options})


def two_stages(kind: str) -> dict[str, Any]:
    """Options for a network that the compiler gets through quickly."""
    if kind == "compact":
        return {"depth": (1, 1), "heads": (1, 2)}
    both: dict[str, Any] = {"depths": (1, 1), "dims": (8, 16), "heads": (1, 2), "strides": (4, 2)}
    return both if kind == "halonet" else {**both, "window_sizes": ((7,), (7, 14))}


def one_stage(kind: str) -> dict[str, Any]:
    """The first of them alone, of each size of window; the compact network keeps both stages."""
    if kind == "compact":
        return two_stages(kind)
    first = {name: sizes[:1] for name, sizes in two_stages(kind).items()}
    return first if kind == "halonet" else {**first, "window_sizes": ((7, 14),)}


KINDS = ["halonet", "sepvit", "compact"]
kinds = pytest.mark.parametrize("kind", KINDS)


# -- published sizes ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", HALONETS)
def test_parameters_of_halonet(name: str) -> None:
    """Within half a percent of the paper's rule (counted without memory)."""
    with torch.device("meta"):
        millions = create_model(name).num_parameters / 1e6
    assert abs(millions / HALONETS[name] - 1) < 0.005


@pytest.mark.parametrize("name", SEPVITS)
def test_parameters_and_operations_of_sepvit(name: str) -> None:
    """Exactly the authors' parameters, and their multiply-adds within two percent."""
    parameters, giga = SEPVITS[name]
    with torch.device("meta"):
        model = create_model(name)
        with FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, 224, 224))
    assert model.num_parameters == parameters
    assert abs(counter.get_total_flops() / 2e9 / giga - 1) < 0.02


def test_window_tokens_of_sepvit() -> None:
    """14,592 of the parameters of the tiny network are window tokens, trained without decay."""
    with torch.device("meta"):
        model = create_model("sepvit_tiny")
    tokens = [p for name, p in model.named_parameters() if name in model.no_weight_decay()]
    assert sum(p.numel() for p in tokens) == 14_592


def test_names() -> None:
    """All published sizes can be listed and created by name."""
    assert set(HALONETS) <= set(list_models("halonet*"))
    assert set(SEPVITS) <= set(list_models("sepvit*"))
    with pytest.raises(ValueError, match="did you mean 'halonet_h1'"):
        create_model("halonet_1")


# -- any image ----------------------------------------------------------------------------------


@kinds
@pytest.mark.parametrize("size", [(224, 224), (256, 256), (97, 131), (32, 32)])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_size_and_every_gradient(kind: str, size: tuple[int, int], batch: int) -> None:
    """Any image works, and no parameter is left without a gradient."""
    model = small(kind)
    out = model(torch.randn(batch, 3, *size))
    assert out.shape == (batch, 10)
    out.square().sum().backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert not missing
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["halonet_h0", "halonet_cifar", "sepvit_lite", "sepvit_cifar"])
def test_published_sizes_run(name: str) -> None:
    """The networks by name give logits for odd images."""
    model = create_model(name, num_classes=7).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 45, 70)).shape == (1, 7)


@kinds
def test_samples_are_independent(kind: str) -> None:
    """In evaluation a sample's logits do not depend on its batch."""
    model = small(kind).eval()
    x = torch.randn(3, 3, 97, 61)
    with torch.no_grad():
        assert_close(model(x[1:2]), model(x)[1:2], 1e-5)


def test_compact_equals_vit_pytorch(peer: Callable[[str], ModuleType]) -> None:
    """SepViT takes vit-pytorch's weights and gives its logits."""
    options = {"num_classes": 5, "dim": 16, "depth": (1, 1, 1), "heads": (1, 2, 2)}
    theirs, ours = peer("vit_pytorch.sep_vit").SepViT(**options), SepViT(**options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 112, 112)
    assert_close(ours(x), theirs(x), 1e-5)


# -- timm's conventions -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["halonet", "sepvit", "sepvit compact"])
def test_gradients_of_each_sample(name: str) -> None:
    """torch.func.vmap over pictures gives the gradients of each alone."""
    model, (images,) = CASES[name].make().double().eval(), CASES[name].inputs()
    weights = {name: value.detach() for name, value in model.named_parameters()}

    def gradients(image: Tensor) -> dict[str, Tensor]:
        def loss(values: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(model, values, (image[None],)).square().sum()

        return torch.func.grad(loss)(weights)

    together = torch.func.vmap(gradients)(images.double())
    model(images.double()[1:]).square().sum().backward()
    for name, value in model.named_parameters():
        assert value.grad is not None
        assert_close(together[name][1], value.grad, 1e-9)


@kinds
def test_features_and_head(kind: str) -> None:
    """forward is forward_head after forward_features; pre_logits gives num_features."""
    model = small(kind).eval()
    x = torch.randn(2, 3, 64, 96)
    features = model.forward_features(x)
    assert features.shape[:2] == (2, model.num_features)
    assert_close(model.forward_head(features), model(x), 1e-6)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.num_features)


@kinds
def test_reset_classifier(kind: str) -> None:
    """A new number of classes; 0 gives pooled features; the configuration follows."""
    model = small(kind).eval()
    x = torch.randn(1, 3, 64, 64)
    model.reset_classifier(4)
    assert model(x).shape == (1, 4)
    assert model.config["num_classes"] == 4
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), torch.nn.Identity)
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    assert torch.equal(model(x), pooled)
    assert small(kind, num_classes=0)(x).shape == (1, model.num_features)


@kinds
def test_pyramids(kind: str) -> None:
    """features_only returns a map for each stage, of the size that feature_info promises."""
    model = small(kind, features_only=True)
    x = torch.randn(1, 3, 64, 96)
    maps = model(x)
    assert len(maps) == len(model.feature_info)
    for found, info in zip(maps, model.feature_info, strict=True):
        step = info["reduction"]
        assert found.shape == (1, info["num_chs"], 64 // step, 96 // step)
        assert model.get_submodule(info["module"])
    sum(m.square().sum() for m in maps).backward()
    assert all(p.grad is not None for p in model.parameters())
    chosen = small(kind, features_only=True, out_indices=(0, -1))(x)
    assert [m.shape for m in chosen] == [maps[0].shape, maps[-1].shape]


@kinds
def test_intermediates(kind: str) -> None:
    """forward_intermediates gives the features and the chosen maps."""
    model = small(kind).eval()
    x = torch.randn(1, 3, 64, 64)
    last, maps = model.forward_intermediates(x, indices=2)
    assert_close(last, model.forward_features(x), 1e-6)
    assert len(maps) == 2
    with pytest.raises(ValueError, match="indices must be stages"):
        model.forward_intermediates(x, indices=[9])


@kinds
def test_stochastic_depth_and_dropout(kind: str) -> None:
    """drop_path_rate and drop_rate act while training only."""
    model = small(kind, drop_path_rate=0.5, drop_rate=0.5)
    x = torch.randn(8, 3, 32, 32)
    assert not torch.allclose(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_other_channels() -> None:
    """in_chans is also called channels; wrong images are refused with both shapes."""
    assert small("halonet", channels=1)(torch.randn(2, 1, 32, 32)).shape == (2, 10)
    with pytest.raises(ValueError, match=r"\(batch, 1, height, width\)"):
        small("sepvit", in_chans=1)(torch.randn(1, 3, 32, 32))


def test_hybrids_use_convolutions() -> None:
    """Stages named in conv_stages hold no attention."""
    model = small("halonet", conv_stages=(0, 1))
    kinds_by_stage = [type(stage[0].mix).__name__ for stage in model.stages]
    assert kinds_by_stage == ["Conv2d", "Conv2d", "HaloAttention"]
    assert model(torch.randn(2, 3, 40, 40)).shape == (2, 10)


# -- files, cost, compilation -------------------------------------------------------------------


@kinds
def test_save_and_load(kind: str, tmp_path: Path) -> None:
    """A saved model gives the same logits, whatever its class is asked for."""
    model = small(kind).eval()
    model.reset_classifier(3)
    x = torch.randn(1, 3, 50, 70)
    model.save_pretrained(tmp_path)
    assert torch.equal(load_model(tmp_path)(x), model(x))
    assert torch.equal(type(model).from_pretrained(tmp_path)(x), model(x))


def test_operations_are_counted() -> None:
    """cost() is what PyTorch counts, with attention over the pairs of the pattern."""
    assert abs(cost(create_model("sepvit_lite"), (224, 224)).flops / 2e9 / 0.57 - 1) < 0.02
    halonet = small("halonet")
    layer = halonet.stages[0][0].mix
    attention = 2 * layer.heads * (layer.dim_qk + layer.dim_v)
    attention *= layer.pattern_of(16, 16).num_pairs(256)
    assert cost(halonet, 64).flops > attention > 0
    assert cost(halonet, 128).flops > 3.5 * cost(halonet, 64).flops


def test_reports_show_patterns() -> None:
    """Layers of image models say who attends to whom, so that a report can draw it."""
    halos = patterns_of(HaloNet(block_size=4, halo_size=1, num_classes=2))
    assert {(one["name"], *one["block_size"], *one["halo_size"]) for one in halos} == {
        ("Halo", 4, 4, 1, 1)
    }
    windows = patterns_of(create_model("sepvit_lite"))
    assert {one["name"] for one in windows} == {"Halo", "Full"}
    layer = create_model("halonet_h0").stages[0][0].mix
    assert layer.pattern == layer.pattern_of(*(3 * side for side in layer.block_size))


@kinds
def test_autocast_to_bfloat16(kind: str) -> None:
    """Logits under autocast are bfloat16 and close."""
    model = small(kind)
    x = torch.randn(4, 3, 64, 64)
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    assert out.dtype == torch.bfloat16
    assert_close(out, expected, 0.1)


def export(model: ImageModel, x: Tensor, dims: list[int]) -> torch.nn.Module:
    dynamic = (dict.fromkeys(dims, torch.export.Dim.DYNAMIC),)
    return torch.export.export(model, (x,), dynamic_shapes=dynamic).module()


@pytest.mark.usefixtures("nothing_kept")
@kinds
def test_exports_with_dynamic_batch(kind: str) -> None:
    """One exported program serves every batch, also of sizes that no window divides.

    Heights and widths that vary, of programs without our operators: tests/export.
    """
    model = small(kind, **one_stage(kind)).eval()
    program = export(model, torch.randn(2, 3, 57, 71), [0])
    x = torch.randn(5, 3, 57, 71)
    assert_close(program(x), model(x), 1e-5)


# -- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("halonet", {"dims": (16, 24)}, "dims must have an entry for each of the 3 stages"),
        ("halonet", {"heads": (3, 3, 3)}, "heads must divide dims"),
        ("halonet", {"num_clases": 3}, "did you mean 'num_classes'"),
        ("halonet", {"num_classes": -1}, "num_classes"),
        ("sepvit", {"heads": (1, 2)}, "heads must have an entry"),
        ("sepvit", {"drop_path_rate": 1.5}, "dropout"),
        ("compact", {"depth": 3}, "depth must be a list of ints"),
        ("compact", {"window_size": (7, 7)}, "window_size must have an entry"),
    ],
)
def test_errors_name_the_argument(kind: str, options: dict[str, Any], message: str) -> None:
    """Wrong keywords are refused with their name."""
    with pytest.raises(ValueError, match=message):
        small(kind, **options)


IMAGE_MODELS = ("halonet", "halonet hybrid", "sepvit", "sepvit compact")


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_what_timm_users_call(name):
    """Columns of feature_info, another classifier, maps in either layout, stopping early."""
    case = CASES[name]
    model = case.make().eval()
    (x,) = case.inputs()
    info, maps = model.feature_info, model.forward_intermediates(x, intermediates_only=True)
    assert info.channels() == [one.shape[1] for one in maps] == [i["num_chs"] for i in info]
    assert info.reduction() == [one["reduction"] for one in info]
    assert info.channels(0) == info.channels()[0]
    assert info.module_name(-1) == info[-1]["module"]
    assert copy.deepcopy(model).feature_info == info
    last, by_row = model.forward_intermediates(x, -1 % len(info), output_fmt="NHWC")
    assert torch.equal(by_row[-1].movedim(-1, 1), maps[-1])
    (normed,) = model.forward_intermediates(x, [-1], norm=True, intermediates_only=True)
    assert torch.equal(normed, last)
    ran = []
    for stage in model.stages if hasattr(model, "stages") else [one[-1] for one in model.layers]:
        stage.register_forward_hook(lambda *a: ran.append(1))
    early = model.forward_intermediates(x, [0], stop_early=True, intermediates_only=True)
    assert torch.equal(early[0], maps[0])
    assert len(ran) == 1
    with pytest.raises(ValueError, match=r"output_fmt must be 'NCHW' or 'NHWC', got"):
        model.forward_intermediates(x, output_fmt="NLC")


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_heads_without_pooling(name, tmp_path):
    """Every pixel gets logits, whose map is saved with the model; "avg" pools again."""
    case = CASES[name]
    model = case.make().eval()
    (x,) = case.inputs()
    model.reset_classifier(5, "")
    assert model(x).shape == (len(x), 5, *model.forward_features(x).shape[2:])
    model.save_pretrained(tmp_path)
    assert torch.equal(load_model(tmp_path)(x), model(x))
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    assert features.shape[1] == model.num_features
    model.reset_classifier(3, "avg")
    assert model(x).shape == (len(x), 3)


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_stages_are_computed_again(name):
    """With set_grad_checkpointing the gradients stay what they were."""
    case = CASES[name]
    model = case.make().eval()
    (x,) = case.inputs()
    found = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_pretrained_weights_are_refused():
    """As timm's create_model is called; there are none to load."""
    model = create_model(
        "halonet_cifar", pretrained=False, features_only=True, out_indices=(0, -1)
    )
    assert len(model.feature_info.channels()) == 2
    assert create_model("halonet_cifar", global_pool="").settings.global_pool == ""
    with pytest.raises(ValueError, match=r"pretrained must be False.*load_upstream"):
        create_model("halonet_cifar", pretrained=True)
