"""An open_clip model as reranker of DALL-E's pictures (`make test-integrations`)."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import foveal
from foveal.common.packages import how_to_get

open_clip = pytest.importorskip(
    "open_clip", reason=f"open_clip is not installed: {how_to_get('open_clip')}"
)

from foveal.integrations.open_clip import Reranker  # noqa: E402

TEXTS = ["a red square", "the sea at night", "two cats"]


@pytest.fixture(scope="module")
def parts():
    """A small model with random weights, its tokenizer, and its own transform."""
    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    model = open_clip.CLIP(embed_dim=16, vision_cfg=vision, text_cfg=text)
    open_clip.model.set_model_preprocess_cfg(
        model, {"size": 32, "mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4), "mode": "RGB"}
    )
    return model, open_clip.get_tokenizer("ViT-B-32")


def by_open_clip(model, tokenizer, texts, images):
    """What its documentation says to do with picture files."""
    from PIL import Image

    cfg = model.visual.preprocess_cfg
    size = cfg["size"]
    names = ("mean", "std", "interpolation", "resize_mode")
    transform = open_clip.image_transform(size, False, **{n: cfg[n] for n in names if n in cfg})
    files = [Image.fromarray(np.uint8((one.permute(1, 2, 0) * 255).round())) for one in images]
    pictures = torch.stack([transform(one) for one in files])
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        seen, words, scale = model(pictures, tokenizer(texts))[:3]
    return (seen * words).sum(-1) * scale


@pytest.mark.parametrize("size", [(32, 32), (20, 20), (48, 64), (50, 33)])
@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
def test_scores_are_those_of_open_clip(parts, size, mode):
    """Pictures of any size, resized and normalised by its own transform."""
    model, tokenizer = copy.deepcopy(parts[0]), parts[1]
    model.visual.preprocess_cfg["resize_mode"] = mode
    images = torch.rand(3, 3, *size)
    found = Reranker(model, tokenizer)(TEXTS, images)
    assert_close(found, by_open_clip(model, tokenizer, TEXTS, images), rtol=1e-5, atol=1e-5)
    assert len(found.unique()) == 3


def dalle():
    torch.manual_seed(1)
    vae = foveal.DiscreteVAE(
        image_size=8, num_layers=1, num_tokens=12, codebook_dim=8, hidden_dim=8
    )
    sizes = {"dim": 16, "depth": 1, "heads": 2, "dim_head": 8, "text_seq_len": 8}
    return foveal.DALLE(vae=vae, num_text_tokens=256, **sizes).eval()


class Bytes:
    """A tokenizer of letters."""

    def tokenize(self, texts, length, truncate_text=False):
        rows = [list(text.encode())[:length] for text in texts]
        return torch.tensor([row + [0] * (length - len(row)) for row in rows])

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode()


def test_pictures_are_sorted_by_whole_texts(parts):
    """Each text's pictures, best first, by the strings and not by what DALL-E reads of them."""
    model, judge, letters = dalle(), Reranker(*parts), Bytes()
    judge.train()
    images, scores = model.generate_images(TEXTS, 3, rerank=judge, tokenizer=letters, seed=0)
    plain = model.generate_images(TEXTS, 3, tokenizer=letters, seed=0)
    told = [text for text in TEXTS for _ in range(3)]
    wanted = by_open_clip(*parts, told, plain).view(3, 3).sort(1, descending=True)
    assert_close(scores.view(3, 3), wanted.values, rtol=1e-5, atol=1e-5)
    places = (wanted.indices + torch.arange(3)[:, None] * 3).flatten()
    assert torch.equal(images, plain[places])
    assert judge.training
    assert judge.model.training


def test_tokens_are_decoded_for_it(parts):
    """Without strings the tokenizer gives them back; without one nothing is drawn."""
    model, judge, letters = dalle(), Reranker(*parts), Bytes()
    tokens = letters.tokenize(["cat", "a dog"], 8)
    found = model.generate_images(tokens, 2, rerank=judge, tokenizer=letters, seed=0)
    wanted = model.generate_images(["cat", "a dog"], 2, rerank=judge, tokenizer=letters, seed=0)
    assert torch.equal(found[1], wanted[1])
    with pytest.raises(ValueError, match="rerank reads strings, got tokens"):
        model.generate_images(tokens, rerank=judge)


def test_what_does_not_fit_is_told_before_anything_is_drawn(parts):
    """A model whose eye has another size than its transform, and pictures of four channels."""
    model, tokenizer = copy.deepcopy(parts[0]), parts[1]
    model.visual.preprocess_cfg["size"] = 40
    drawn = []
    with pytest.raises(ValueError, match="rerank must score these texts with pictures of the VAE"):
        dalle().generate_images(
            TEXTS, rerank=Reranker(model, tokenizer), tokenizer=Bytes(), progress=drawn.append
        )
    assert drawn == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, t: Reranker(torch.nn.Identity(), t), "must be one of open_clip, got Identity"),
        (lambda m, t: Reranker(m, lambda texts: t(texts)[:, :20]), "reads 77 tokens.* gives 20"),
        (lambda m, t: Reranker(m, lambda texts: t(texts) + 10), "knows 49,408 tokens"),
        (lambda m, t: Reranker(m, t)(["a"], torch.rand(2, 3, 8, 8)), "text must be 2 strings"),
        (lambda m, t: Reranker(m, t)(t(["a"]), torch.rand(1, 3, 8, 8)), "text must be 1 strings"),
        (lambda m, t: Reranker(m, t)(["a"], torch.rand(1, 4, 8, 8)), "1 or 3, height, width"),
        (lambda m, t: Reranker(m, t)(["a"], torch.ones(1, 3, 8, 8).byte()), "must be floats"),
        (lambda m, t: Reranker(m, t)(["a"], torch.rand(1, 3, 8, 8), return_loss=True), "False"),
    ],
)
def test_mistakes_are_named(parts, call, message):
    """One line each."""
    with pytest.raises(ValueError, match=message):
        call(*parts)
