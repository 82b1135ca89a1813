"""A token that the vocabulary does not have is named, with what was expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from foveal import models as M
from foveal import patterns as P

TEXT = {"num_tokens": 20, "dim": 16, "heads": 2, "dim_head": 8, "max_seq_len": 32}
Call = Callable[[M.CausalLM, Tensor], Any]


def transformer(**options: Any) -> M.TransformerLM:
    return M.TransformerLM(**TEXT, depth=1, pattern=P.SlidingWindow(9), **options)


MODELS = {
    "transformer": transformer,
    "tied": lambda: transformer(tie_embeddings=True),
    "hourglass": lambda: M.HourglassTransformerLM(**TEXT, depth=(1, 1, 1), shorten_factor=2),
    "pyramid": lambda: M.HTransformer1D(**TEXT, depth=1, block_size=4, causal=True),
}
CALLS: dict[str, Call] = {
    "forward": lambda model, tokens: model(tokens),
    "prefill": lambda model, tokens: model.prefill(tokens),
    "chunks": lambda model, tokens: model.prefill(tokens, chunk=4),
    "extend": lambda model, tokens: model.extend(tokens, model.make_cache(len(tokens))),
    "later": lambda model, tokens: model.extend(tokens, model.prefill(tokens * 0 + 3)[1]),
    "step": lambda model, tokens: model.step(tokens[:, 4], model.prefill(tokens * 0 + 3)[1]),
    "stepper": lambda model, tokens: model.stepper(2)(
        tokens[:, 4], model.prefill(tokens * 0 + 3)[1]
    ),
    "generate": lambda model, tokens: model.generate(tokens, 2),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_language_model_names_it(make: Callable[[], M.CausalLM], call: Call) -> None:
    """Too large or negative, of any int type, on every way into the model."""
    model = make().eval()
    tokens = torch.randint(20, (2, 8))
    call(model, tokens)
    for wrong, dtype in ((20, torch.uint8), (-3, torch.int32), (1 << 40, torch.int64)):
        tokens[1, 4] = wrong
        with pytest.raises(ValueError, match=rf"from 0 to 19, got .*{wrong}.*num_tokens=20"):
            call(model, tokens.to(dtype))


def test_both_sides_of_a_translation() -> None:
    """Source and target are told apart, and each has its own vocabulary."""
    depths = {"enc_depth": 1, "dec_depth": 1, "enc_block_size": 4, "dec_block_size": 4}
    words = {"num_tokens": 20, "num_target_tokens": 10, "max_seq_len": 16}
    model = M.HTransformerSeq2Seq(dim=16, heads=2, dim_head=8, **depths, **words)
    few, many = torch.full((1, 8), 9), torch.full((1, 8), 19)
    model(many, few)
    with pytest.raises(ValueError, match=r"source must hold .* 0 to 19, got .*20.*num_tokens=20"):
        model(many + 1, few)
    for call in (model, model.prefill, lambda s, t: model.generate(s, t, 2)):
        with pytest.raises(ValueError, match=r"(target|prompt) must .* got .*19.*num_tokens=10"):
            call(many, many)
    _, cache = model.prefill(many, few)
    with pytest.raises(ValueError, match=r"token must hold .* 0 to 9"):
        model.step(many[:, 0], cache)
    with pytest.raises(ValueError, match=r"tokens must hold .* 0 to 9"):
        model.extend(many, cache)


@pytest.mark.parametrize("tied", [False, True])
def test_words_and_pixels(tied: bool) -> None:
    """A word is no pixel and a pixel no word, where both are rows of one table too."""
    model = M.DALLE(
        dim=16,
        depth=1,
        heads=2,
        dim_head=8,
        num_text_tokens=11,
        text_seq_len=5,
        num_image_tokens=7,
        image_grid=(2, 3),
        share_input_output_emb=tied,
    ).eval()
    text, image = torch.randint(1, 11, (2, 5)), torch.randint(7, (2, 3))
    _, cache = model.prefill(text, image)
    for wrong in (7, -1):
        with pytest.raises(ValueError, match=rf"token must .* 0 to 6, got .*{wrong}"):
            model.step(torch.tensor([0, wrong]), cache)
        with pytest.raises(ValueError, match=rf"tokens must .* 0 to 6, got .*{wrong}"):
            model.extend(torch.tensor([[0, 1], [wrong, 0]]), cache)
    _, cache = model.prefill(text[:, :2], whole_text=False)
    with pytest.raises(ValueError, match=r"tokens must .* 0 to 15, got .*16"):
        model.extend(torch.full((2, 2), 16), cache)


def test_others_that_take_tokens() -> None:
    """Classifier, CLIP and the decoder of pictures."""
    kind = M.HTransformerClassifier(
        num_tokens=20, num_classes=2, dim=16, depth=1, heads=2, max_seq_len=16, block_size=4
    )
    with pytest.raises(ValueError, match=r"tokens must .* 0 to 19, got .*20"):
        kind(torch.full((1, 8), 20))
    clip = M.CLIP(
        dim_text=16,
        dim_image=16,
        dim_latent=8,
        num_text_tokens=20,
        text_enc_depth=1,
        text_seq_len=6,
        text_heads=2,
        visual_enc_depth=1,
        visual_heads=2,
        visual_image_size=16,
        visual_patch_size=8,
    )
    with pytest.raises(ValueError, match=r"text must .* 0 to 19, got .*20"):
        clip.encode_text(torch.full((1, 6), 20))
    sizes = {"image_size": 16, "num_tokens": 12, "codebook_dim": 8, "hidden_dim": 8}
    for vae in (M.DiscreteVAE(**sizes, num_layers=2), M.VQVAE(**sizes, num_layers=2)):
        with pytest.raises(ValueError, match=r"img_seq must .* 0 to 11, got .*12"):
            vae.decode(torch.full((1, 16), 12))


def test_compiled_graphs_hold_no_check() -> None:
    """Nothing is looked at in an exported model."""
    model = transformer().eval()
    program = torch.export.export(model, (torch.randint(20, (1, 8)),))
    names = [str(node.target) for node in program.graph.nodes]
    assert any("embedding" in name for name in names)
    assert not any(
        part in name for name in names for part in ("aten.item", "aten.min.", "aten.max.")
    )
