"""DALL-E's edges: rerankers that do not fit, feed-forwards of other kinds, the paper's size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from foveal.models import CLIP, DALLE, DiscreteVAE, create_model

TEXT = {"num_text_tokens": 11, "text_seq_len": 3}
CLIP_SIZES = {
    "dim_text": 8, "dim_image": 8, "dim_latent": 4, "text_enc_depth": 1, "text_heads": 1,
    "visual_enc_depth": 1, "visual_heads": 1, "visual_image_size": (6, 5), "visual_patch_size": 3,
    "dropout": 0.5, **TEXT,
}  # fmt: skip


def drawer() -> DALLE:
    torch.manual_seed(0)
    vae = DiscreteVAE(image_size=(6, 5), num_tokens=7, num_layers=1, hidden_dim=4)
    return DALLE(dim=12, depth=1, heads=2, dim_head=6, vae=vae, **TEXT)


class Judge(nn.Module):
    """Scores whatever it is given, in the shape it was told."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, text, images, return_loss):
        return torch.zeros(self.shape or len(text))


@pytest.mark.parametrize(
    "judge",
    [
        CLIP(**{**CLIP_SIZES, "visual_image_size": (8, 8)}),
        CLIP(**{**CLIP_SIZES, "text_seq_len": 2}),
        CLIP(**{**CLIP_SIZES, "num_text_tokens": 5}),
        CLIP(**{**CLIP_SIZES, "channels": 1}),
        Judge(2, 2),
        "a name",
    ],
)
@pytest.mark.parametrize("keyword", ["rerank", "clip"])
def test_a_reranker_that_does_not_fit(judge, keyword):
    """It is refused in one line before a single token is drawn."""
    drawn: list[int] = []
    with pytest.raises(ValueError, match="rerank must") as caught:
        drawer().generate_images(
            torch.tensor([[1, 9, 7]]), progress=drawn.append, **{keyword: judge}
        )
    assert not drawn
    assert "\n" not in str(caught.value)


def test_a_reranker_is_put_into_evaluation_mode():
    """Dropout does not vote; afterwards every part is in the mode in which it was."""
    clip = CLIP(**CLIP_SIZES)
    clip.visual_transformer.eval()
    modes = [part.training for part in clip.modules()]
    model, text = drawer(), torch.tensor([[1, 9, 7], [2, 0, 0]])
    images, scores = model.generate_images(text, 3, rerank=clip, seed=0)
    assert [part.training for part in clip.modules()] == modes
    assert model.training
    expected = clip.eval()(text.repeat_interleave(3, 0), images)
    assert torch.allclose(scores, expected, atol=1e-5)
    assert (scores.unflatten(0, (2, 3)).diff(dim=1) <= 0).all()


@pytest.mark.parametrize(
    ("mult", "activation", "shapes"),
    [
        (1.5, "geglu", [(36, 12), (12, 18)]),
        (0.75, "gelu", [(9, 12), (12, 9)]),
        (2, "swiglu", [(48, 12), (12, 24)]),
    ],
)
def test_feed_forwards(mult, activation, shapes, tmp_path):
    """Any ratio and activation, which come back from files."""
    model = DALLE(
        dim=12, depth=1, heads=2, dim_head=6, num_image_tokens=7, image_grid=2, ff_mult=mult,
        activation=activation, **TEXT,
    )  # fmt: skip
    model.save_pretrained(tmp_path)
    layer = DALLE.from_pretrained(tmp_path).transformer.feed_forwards[0]
    assert [tuple(one.weight.shape) for one in (layer.to_hidden, layer.to_out)] == shapes


def test_twelve_billion_parameters():
    """The paper's configuration has the paper's number of parameters, layer by layer."""
    with torch.device("meta"):
        model = create_model("dalle_12b")
    dim, layers = 62 * 64, 64
    own = 12 * dim**2 * layers  # 4 d^2 of attention and 8 d^2 of the feed-forward in each layer
    assert model.transformer.depth == layers
    counted = sum(p.numel() for p in model.transformer.parameters() if p.ndim > 1)
    assert counted == own
    assert round(model.num_parameters / 1e9) == 12
