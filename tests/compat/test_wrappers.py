"""Weights are found wherever training scripts keep them, whatever they put before the names."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import foveal
from foveal.compat.wrappers import unwrap
from foveal.interop import load_upstream, read_checkpoint
from foveal.models import TransformerLM

WEIGHTS = foveal.HaloAttention(dim=8, block_size=4, halo_size=2, dim_head=4, heads=2).state_dict()
CONFIG = {"block_size": 4}


def under(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in WEIGHTS.items()}


def other(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: torch.zeros_like(value) for name, value in WEIGHTS.items()}


@pytest.mark.parametrize(
    "content",
    [
        under("module."),
        under("_orig_mod.module."),
        under("module._orig_mod.net."),
        under("_orig_mod.net.model.0."),
        under("backbone."),
        under("model._fsdp_wrapped_module._checkpoint_wrapped_module."),
        {**under("module."), "n_averaged": torch.tensor(3)},
        {**under("ema_model.module."), **other("online_model.module."), "initted": torch.ones(1)},
        {**under("ema_model."), "initted": torch.ones(1), "step": torch.tensor([5])},
        {"state_dict": under("model.")},
        {"state_dict": {**under("model._orig_mod."), "criterion.weight": torch.ones(2)}},
        {"state_dict": {**under("model."), **other("model_ema.")}, "epoch": 3},
        {"model": {"state_dict": under("module.")}},
        {"model": {"params": {"net": WEIGHTS}}, "step": torch.tensor(5)},
        {"params": WEIGHTS, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}},
        {"ema": WEIGHTS},
        {"model": WEIGHTS, "ema": other(""), "optimizer": {"a": torch.ones(1)}},
        {"my_own_key": under("module.")},
    ],
)
def test_nests_and_prefixes(content):
    """The same layer comes out of every nesting, and trained weights win over their averages."""
    layer = load_upstream(content, package="halonet-pytorch", config=CONFIG)
    for name, value in layer.state_dict().items():
        assert torch.equal(value, WEIGHTS[name]), name


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own imports
def test_weights_of_real_wrappers(tmp_path):
    """What torch's own wrappers write is read, from files of torch and of safetensors."""
    model = TransformerLM(dim=8, depth=1, heads=2, dim_head=4, num_tokens=5)
    averaged = torch.optim.swa_utils.AveragedModel(nn.Sequential(torch.compile(model)))
    averaged.update_parameters(averaged.module)
    assert unwrap(averaged.state_dict()).keys() == model.state_dict().keys()
    torch.save({"state_dict": averaged.state_dict()}, tmp_path / "a.pt")
    save_file({k: v.clone() for k, v in averaged.state_dict().items()}, tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        assert read_checkpoint(tmp_path / name).weights.keys() == model.state_dict().keys()


def test_nothing_is_stripped_without_need():
    """Names that are the model's own stay."""
    for model in (
        foveal.DALLE(dim=12, depth=1, heads=2, dim_head=6, num_text_tokens=5, text_seq_len=2,
                     num_image_tokens=4, image_grid=2),
        foveal.DiscreteVAE(image_size=8, num_tokens=4, num_layers=1, hidden_dim=4),
        foveal.SepViT(dim=8, depth=(1, 1), heads=1, window_size=2, num_classes=2),
    ):  # fmt: skip
        assert unwrap(model.state_dict()).keys() == model.state_dict().keys()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_dtype_is_kept(dtype):
    """A half-precision checkpoint gives a half-precision layer; mixed ones the widest dtype."""
    half = {name: value.to(dtype) for name, value in WEIGHTS.items()}
    layer = load_upstream(half, package="halonet-pytorch", config=CONFIG)
    assert {p.dtype for p in layer.parameters()} == {dtype}
    mixed = {**half, "to_out.weight": WEIGHTS["to_out.weight"]}
    layer = load_upstream(mixed, package="halonet-pytorch", config=CONFIG)
    widest = torch.promote_types(dtype, torch.float32)
    assert {p.dtype for p in layer.parameters()} == {widest}


def test_errors_name_the_key_and_stay_on_one_line():
    """What does not fit is named, in one line."""
    wrong = {**WEIGHTS, "to_out.bias": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"to_out\.bias.*config=") as caught:
        load_upstream(wrong, package="halonet-pytorch", config=CONFIG)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="holds no weights"):
        load_upstream({"a": {"b": 3}, "optimizer": {"exp_avg": torch.ones(2)}})
