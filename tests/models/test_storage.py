"""Models whose weights are shared, on disk and back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

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
