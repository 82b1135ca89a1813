"""Models whose weights are shared, on disk and back."""

from __future__ import annotations

import contextlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from zoo import CASES

from foveal.compat import load_upstream
from foveal.layers import HaloAttention
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


PLACES = [
    ({"device": "cuda:99"}, r"device='cuda:99' is not on this machine, which has cpu"),
    ({"device": "cup"}, r"device='cup' is not on .*; did you mean 'cpu'\?"),
    ({"device": ""}, r"device='' is not"),
    ({"device": True}, r"device=True is not"),
    ({"device": [1]}, r"device=a list is not"),
    ({"device": "hpu"}, r"device='hpu' is not"),
    ({"dtype": "bfloat17"}, r"dtype must be one of .*, got dtype='bfloat17'; did you mean 'bfl"),
    ({"dtype": "int8"}, r"dtype must be one of 'float32', 'bfloat16', 'float16', 'float64'"),
    ({"dtype": torch.int8}, r"got dtype=torch.int8"),
    ({"dtype": torch.float8_e4m3fn}, r"got dtype=torch.float8_e4m3fn"),
    ({"dtype": 16}, r"got dtype=16"),
    ({"dtype": [torch.float16]}, r"got dtype=a list"),
]


@pytest.mark.parametrize(("given", "words"), PLACES, ids=lambda one: str(one)[:30])
@pytest.mark.parametrize("load", [load_model, TransformerLM.from_pretrained, load_upstream])
def test_places_and_types_that_are_none(load, given, words):
    """Another dtype or device is refused in one line, before anything is read."""
    with pytest.raises(ValueError, match=words) as caught:
        load("nowhere", **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("float64", torch.float64),
        ("torch.float16", torch.float16),
        ("half", torch.float16),
        ("bf16", torch.bfloat16),
        (torch.float32, torch.float32),
    ],
)
def test_types_by_their_names(name, dtype, tmp_path):
    """A type is named as torch, its tensors and the field call it; tied weights stay tied."""
    model = TransformerLM(**SMALL)
    tie_logits(model)
    model.save_pretrained(tmp_path)
    again = load_model(tmp_path, "cpu:0", dtype=name)
    assert (again.dtype, again.device) == (dtype, torch.device("cpu"))
    assert again.to_logits.weight is again.token_emb.weight
    with torch.device(
        "meta"
    ):  # the default of the process is of what is made, not of what is read
        assert load_model(tmp_path).device.type == "cpu"


def test_weights_of_a_package_in_another_type():
    """load_upstream takes both, for a layer too."""
    layer = HaloAttention(dim=32, block_size=8, halo_size=4)
    options = {"package": "halonet-pytorch", "config": {"block_size": 8, "halo_size": 4}}
    read = load_upstream(layer.state_dict(), **options, dtype="bfloat16", device="cpu")
    assert {x.dtype for x in read.parameters()} == {torch.bfloat16}
    read = load_upstream(layer.state_dict(), **options, device="meta")
    assert {(x.dtype, x.device.type) for x in read.parameters()} == {(torch.float32, "meta")}
