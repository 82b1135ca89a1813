"""Models whose weights are shared, on disk and back."""

from __future__ import annotations

import contextlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from zoo import CASES

from foveal.models import DALLE, TransformerLM, load_model

SMALL = {"dim": 8, "depth": 2, "heads": 2, "dim_head": 4, "num_tokens": 5}


def tie_logits(model: TransformerLM) -> None:
    model.to_logits.weight = model.token_emb.weight


def tie_layers(model: TransformerLM) -> None:
    model.transformer.layers[1].ff = model.transformer.layers[0].ff


def tie_storage(model: TransformerLM) -> None:
    """Two parameters that are views of one tensor, which is no tie."""
    both = torch.randn(2, 5, 8)
    model.token_emb.weight = nn.Parameter(both[0])
    model.to_logits.weight = nn.Parameter(both[1])


@pytest.mark.parametrize("tie", [tie_logits, tie_layers, tie_storage])
def test_tied_by_hand(tie, tmp_path):
    """Weights that were tied by hand are saved, loaded, and are still tied."""
    torch.manual_seed(0)
    model = TransformerLM(**SMALL).eval()
    tie(model)
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    tokens = torch.randint(0, 5, (1, 7))
    assert torch.equal(again(tokens), model(tokens))
    assert again.num_parameters == model.num_parameters
    again.save_pretrained(tmp_path / "again")


def test_sparse_layers(tmp_path):
    """A DALLE with random blocks loads, with the same blocks and logits."""
    model = DALLE(
        dim=12, depth=2, heads=2, dim_head=6, num_text_tokens=9, text_seq_len=40,
        num_image_tokens=7, image_grid=8, attn_types=("sparse",),
    ).eval()  # fmt: skip
    model.save_pretrained(tmp_path)
    text, image = torch.randint(1, 9, (1, 40)), torch.randint(0, 7, (1, 64))
    assert torch.equal(load_model(tmp_path)(text, image), model(text, image))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_models_are_made_anywhere(device):
    """Under another default device everything that is no weight is as it is elsewhere."""
    with torch.device(device):
        model = DALLE(
            dim=12, depth=5, heads=2, dim_head=6, num_text_tokens=9, text_seq_len=4,
            num_image_tokens=7, image_grid=4,
            attn_types=("sparse", "conv_like", "axial_col", "paper_conv", "full"),
        )  # fmt: skip
    assert {p.device.type for p in model.parameters()} == {device}
    text = torch.ones(1, 4, dtype=torch.long, device=device)
    image = torch.zeros(1, 16, dtype=torch.long, device=device)
    assert model(text, image, return_loss=True).device.type == device


def damaged(tmp_path, note):
    """A saved model whose file of weights holds another note."""
    model = TransformerLM(**SMALL)
    tie_logits(model)
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path), path, {"format": "pt", "tied": note})


ODD = [None, [], {}, "x", "", -1, 1e400, 10**30, [10**30], [[1]], {"name": "x"}, {"a": {}}]


@pytest.mark.parametrize("odd", ODD, ids=str)
@pytest.mark.parametrize("name", ["transformer", "halonet", "dalle", "discrete vae"])
def test_configurations_of_another_shape(name, odd, tmp_path):
    """Any value in the place of any other is taken, or refused in one line; and soon."""
    CASES[name].make().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    shapes = [odd, {**saved, "config": odd}, {**saved, "family": odd}]
    for key in saved["config"]:
        shapes.append({**saved, "config": {**saved["config"], key: odd}})
    for content in shapes:
        path.write_text(json.dumps(content))
        with contextlib.suppress(ValueError):
            load_model(tmp_path)
            continue
        with pytest.raises(ValueError, match=r"\A[^\n]{20,}\Z"):
            load_model(tmp_path)


OTHER = [torch.int64, torch.int8, torch.uint8, torch.bool, torch.complex64]


@pytest.mark.parametrize("dtype", OTHER, ids=str)
@pytest.mark.parametrize("part", ["", "norm"])
def test_weights_of_another_kind(dtype, part, tmp_path):
    """Whole numbers, truth and complex numbers are no weights, be it one of them: one line."""
    TransformerLM(**SMALL).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    save_file({k: v.to(dtype) if part in k else v for k, v in weights.items()}, path)
    with pytest.raises(ValueError, match=r"numbers, expected floating-point ones") as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_counts_are_whole_numbers(tmp_path):
    """What a model counts in whole numbers is not read from others."""
    CASES["halonet"].make().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    weights = load_file(path)
    counts = [name for name in weights if "num_batches" in name]
    save_file({**weights, counts[0]: weights[counts[0]].float()}, path)
    with pytest.raises(ValueError, match=rf"{counts[0]} has floating-point numbers, expected wh"):
        load_model(tmp_path)


NOTES = ["[]", "3", "null", '"a"', "{", '{"a": 1}', '{"a": ["b"]}', "[" * 3000, "\x00", "NaN"]
NOTES += ['{"to_logits.weight": "nowhere"}', '{"nowhere": "to_logits.weight"}']
NOTES += ['{"to_logits.weight": "transformer.norm.weight"}']
NOTES += ['{"transformer.norm.weight": "transformer.norm.bias"}']  # of one shape


@pytest.mark.parametrize("note", NOTES, ids=lambda note: note[:24])
def test_notes_of_another_kind(note, tmp_path):
    """A note of tied weights of any other shape is refused in one line, and ties nothing."""
    damaged(tmp_path, note)
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated or damaged") as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_tied_weights_that_are_nan(tmp_path):
    """A model that has diverged is still loaded."""
    model = TransformerLM(**SMALL)
    tie_logits(model)
    nn.init.constant_(model.token_emb.weight, torch.nan)
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path)
    assert again.to_logits.weight is again.token_emb.weight
