"""DALLE: decoding equals the forward pass, guidance, priming, texts, files, errors."""

from __future__ import annotations

import math

import pytest
import torch

from foveal import patterns as P
from foveal.models import DALLE, DiscreteVAE, cost, create_model, list_models
from foveal.models.dalle import paper_schedule, pattern_of
from foveal.testing import assert_causal

SIZES = {
    "dim": 32,
    "depth": 4,
    "heads": 2,
    "dim_head": 16,
    "num_text_tokens": 50,
    "text_seq_len": 6,
    "num_image_tokens": 20,
    "image_grid": (3, 4),
}
ALL = ("full", "axial_row", "axial_col", "conv_like")
VARIANTS = {
    "all": {"attn_types": ALL},
    "no shift": {"attn_types": ALL, "shift_tokens": False},
    "sparse, mlp": {"attn_types": ("sparse", "mlp")},
    "paper": {"attn_types": ("paper_row", "paper_col", "paper_row", "paper_conv")},
    "patterns": {
        "attn_types": (P.SlidingWindow(9), P.Neighborhood((3, 4), 3, causal="raster")),
    },
    "reversible": {"attn_types": ALL, "reversible": True},
    "learned positions": {"attn_types": ALL, "rotary_emb": False},
    "stable, sandwich": {"attn_types": ALL, "stable": True, "sandwich_norm": True},
    "shared": {"attn_types": ALL[:2], "shared_attn_ids": (0, 1), "shared_ff_ids": (0,)},
    "shared embeddings": {"attn_types": ALL, "share_input_output_emb": True},
    "compat": {"attn_types": ALL, "compat": "dalle-pytorch-1.6.6"},
}


def make(**options) -> DALLE:
    torch.manual_seed(0)
    model = DALLE(**{**SIZES, **options}).eval()
    for branch in model.transformer.branches:  # the layer scales start near 0
        branch.scale.data.uniform_(0.5, 1.5)
    return model


def inputs(batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    text = torch.randint(0, 50, (batch, 5))
    return text, torch.randint(0, 20, (batch, 12))


@pytest.mark.parametrize("name", VARIANTS)
def test_decoding_equals_the_forward_pass(name):
    """Every kind of attention: logits token by token are those of the whole sequence."""
    model = make(**VARIANTS[name])
    text, image = inputs()
    with torch.no_grad():
        wanted = model(text, image)[:, 6:, model.num_text_tokens :]
    for known in (0, 1, 5):
        logits, cache = model.prefill(text, image[:, :known])
        for i in range(known, 12):
            torch.testing.assert_close(logits, wanted[:, i], atol=1e-5, rtol=1e-5)
            if i < 11:
                logits, cache = model.step(image[:, i], cache)


@pytest.mark.parametrize("name", VARIANTS)
def test_cached_generation_draws_the_same_tokens(name):
    """Same seed, same tokens: with and without cache, guided, primed, several pictures a text."""
    model = make(**VARIANTS[name])
    text, image = inputs()
    options = {"guidance": 2.5, "img": image, "num_init_img_rows": 1, "seed": 3, "top_k": 10}
    cached = model.generate_image_tokens(text, 2, **options)
    whole = model.generate_image_tokens(text, 2, **options, use_cache=False)
    assert torch.equal(cached, whole)
    assert torch.equal(cached[:, :4], image[:, :4].repeat_interleave(2, 0))


def test_guidance_of_one_is_none():
    """guidance=1 draws what no guidance draws; another scale moves the logits."""
    model = make(attn_types=ALL)
    text, _ = inputs()
    plain = model.generate_image_tokens(text, seed=0)
    assert torch.equal(model.generate_image_tokens(text, seed=0, guidance=1.0), plain)
    assert not torch.equal(model.generate_image_tokens(text, seed=0, guidance=9.0), plain)


def test_guidance_is_that_of_two_passes():
    """Guided logits are the pass without text, moved towards the pass with it, at every step."""
    from foveal.models.dalle.generate import Pictures

    model = make(attn_types=ALL)
    text, image = inputs()
    with torch.no_grad():
        told, untold = model(text, image), model(torch.zeros_like(text), image)
    wanted = (untold + 3 * (told - untold))[:, 6:, model.num_text_tokens :]
    decoder = Pictures(model, text, 3.0)
    logits, cache = decoder.prefill(torch.zeros(2, 1, dtype=torch.long))
    for i in range(12):
        torch.testing.assert_close(logits, wanted[:, i], atol=1e-4, rtol=1e-4)
        if i < 11:
            logits, cache = decoder.step(image[:, i], cache)


def test_the_callers_tensors_are_unchanged():
    """Generation and training with null conditioning leave text and image alone."""
    model = make(attn_types=ALL)
    text, image = inputs()
    kept = text.clone(), image.clone()
    model.generate_image_tokens(text, guidance=2.0, img=image, seed=0)
    model.train()(text, image, return_loss=True, null_cond_prob=1.0)
    assert torch.equal(text, kept[0])
    assert torch.equal(image, kept[1])


def test_null_conditioning_is_an_empty_text():
    """null_cond_prob=1 gives the logits of a text of padding."""
    model = make()
    text, image = inputs()
    with torch.no_grad():
        torch.testing.assert_close(
            model(text, image, null_cond_prob=1.0), model(torch.zeros_like(text), image)
        )


def test_loss_is_that_of_the_logits():
    """The loss equals cross-entropy over the full logits, weighted text 1 to image 7."""
    model = make(attn_types=ALL)
    text, image = inputs()
    text[text == 0] = 1
    with torch.no_grad():
        logits = model(text, image)
        padding = model.num_text_tokens - 1
        labels = torch.cat(
            (torch.nn.functional.pad(text, (0, 1), value=padding), image + model.num_text_tokens),
            1,
        )
        each = torch.nn.functional.cross_entropy(logits.mT, labels, reduction="none")
        wanted = (each[:, :6].mean() + 7 * each[:, 6:].mean()) / 8
        torch.testing.assert_close(model(text, image, return_loss=True), wanted)


@pytest.mark.parametrize("name", VARIANTS)
def test_nothing_leaks_from_the_future(name):
    """No token changes the features of a position before it."""
    model = make(**VARIANTS[name])
    assert_causal(model.double().transformer, 7 + 11, dim=32)


def test_gradients_reach_every_parameter():
    """Training trains all of the model, reversible and with shared layers too."""
    options = {"reversible": True, "attn_types": ALL[:2], "shared_attn_ids": (0, 1)}
    for model in (make(attn_types=ALL, rotary_emb=False), make(**options)):
        text, image = inputs()
        model.train()(text, image, return_loss=True).backward()
        assert all(p.grad is not None for p in model.parameters())


def test_reversible_gradients():
    """Recomputed activations give the gradients of the plain backward pass."""
    grads = []
    for training in (False, True):  # evaluation runs the same sums without recomputing
        model = make(attn_types=ALL, reversible=True).train(training)
        model(*inputs(), return_loss=True).backward()
        grads.append(model.text_emb.weight.grad)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-6, rtol=1e-4)


def test_text_completion():
    """Texts are continued from their own lengths, end in padding, and decode with a tokenizer."""
    model = make(attn_types=ALL)

    class Letters:
        def encode(self, text):
            return [ord(c) - 96 for c in text]

        def decode(self, ids):
            return "".join(chr(i + 96) for i in ids)

    tokens, texts = model.generate_texts(Letters(), "ab", num_texts=3, seed=0, top_k=5)
    assert tokens.shape == (3, 6)
    assert all(text.startswith("ab") for text in texts)
    start = torch.tensor([[7, 3, 0, 0], [9, 0, 0, 0]])
    again, _ = model.generate_texts(None, start, seed=1)
    assert again[0, :2].tolist() == [7, 3]
    assert again[1, 0] == 9
    ended = (again == 0).int().cumsum(1) > 0
    assert not again[ended].any()
    assert model.generate_texts(temperature=0)[0].shape == (1, 6)


# -- with a VAE ---------------------------------------------------------------------------------


def tiny_vae() -> DiscreteVAE:
    torch.manual_seed(2)
    return DiscreteVAE(
        image_size=(12, 16), num_tokens=20, codebook_dim=8, num_layers=2, hidden_dim=4
    )


def with_vae(**options) -> DALLE:
    rest = {k: v for k, v in SIZES.items() if k not in ("num_image_tokens", "image_grid")}
    torch.manual_seed(0)
    return DALLE(vae=tiny_vae(), **{**rest, "attn_types": ALL, **options}).eval()


def test_pictures():
    """The VAE gives the sizes; pictures come out in [0, 1], primed ones start from the picture."""
    model = with_vae()
    text, _ = inputs()
    assert model.grid == (3, 4)
    images = model.generate_images(text, 2, seed=0)
    assert images.shape == (4, 3, 12, 16)
    assert 0 <= float(images.min()) <= float(images.max()) <= 1
    given = torch.rand(2, 3, 12, 16)
    tokens = model.generate_image_tokens(text, img=given, num_init_img_tokens=5, seed=0)
    assert torch.equal(tokens[:, :5], model.vae.get_codebook_indices(given)[:, :5])
    loss = model.train()(text, given, return_loss=True)
    loss.backward()
    assert all(p.grad is None for p in model.vae.parameters())
    assert not model.vae.training


def test_keywords_of_the_package():
    """clip, filter_thres, cond_scale, img and num_init_img_tokens work as in dalle-pytorch."""
    model = with_vae()
    text, _ = inputs()

    def clip(text, images, return_loss):
        assert text.shape == (2, 6)
        return images.flatten(1).mean(1)

    images, scores = model.generate_images(
        text, clip=clip, filter_thres=0.9, temperature=1.0, cond_scale=2.0, use_cache=True, seed=0
    )
    torch.testing.assert_close(scores, images.flatten(1).mean(1))


def test_reranking_sorts_the_pictures_of_each_text():
    """rerank: best first, among the pictures of one text."""
    model = with_vae()
    text, _ = inputs()
    asked = []

    def judge(text, images, return_loss):
        asked.append(text)
        return images.flatten(1).mean(1)

    plain = model.generate_images(text, 3, seed=0).unflatten(0, (2, 3))
    images, scores = model.generate_images(text, 3, seed=0, rerank=judge)
    assert (scores.view(2, 3).diff(dim=1) <= 0).all()
    torch.testing.assert_close(images.reshape(2, 3, -1).sum(1), plain.flatten(2).sum(1))
    # it is tried on one picture of each text before anything is drawn
    assert torch.equal(asked[-1][:, :5], text.repeat_interleave(3, 0))


def test_files(tmp_path):
    """A saved model, its VAE and shared layers included, gives the same pictures."""
    model = with_vae(shared_attn_ids=(0, 1, 2, 3), shared_ff_ids=(0, 0, 1, 1))
    model.save_pretrained(tmp_path)
    again = DALLE.from_pretrained(tmp_path)
    text, _ = inputs()
    assert torch.equal(again.generate_images(text, seed=0), model.generate_images(text, seed=0))
    assert isinstance(again.vae, DiscreteVAE)


def test_patterns_in_files(tmp_path):
    """Patterns among the attention types survive a file."""
    model = make(**VARIANTS["patterns"])
    model.save_pretrained(tmp_path)
    assert DALLE.from_pretrained(tmp_path).settings == model.settings


# -- errors, cost, names ------------------------------------------------------------------------


def test_mismatches_name_both_numbers():
    """VAE, text length and grid: the message has what was given and what was expected."""
    with pytest.raises(ValueError, match=r"num_image_tokens must be .* 20, got .*=30"):
        with_vae(num_image_tokens=30)
    with pytest.raises(
        ValueError, match=r"image_grid must be .* \(3, 4\), got image_grid=\(4, 4\)"
    ):
        with_vae(image_grid=4)
    model = make()
    text, image = inputs()
    with pytest.raises(ValueError, match="text_seq_len=6 tokens, got 7"):
        model(torch.zeros(1, 7, dtype=torch.long))
    with pytest.raises(ValueError, match=r"at most 12 tokens, .* 3 x 4, got 13"):
        model(text, torch.zeros(2, 13, dtype=torch.long))
    with pytest.raises(ValueError, match=r"tokens from 0 to 19, got values from 0 to 20"):
        model(text, torch.tensor([[0], [20]]))
    with pytest.raises(ValueError, match="need a VAE"):
        model.generate_images(text)
    with pytest.raises(ValueError, match=r"12 tokens .* got 12"):
        model.generate_image_tokens(text, img=image, num_init_img_tokens=12)


def test_bad_options_are_named():
    """Unknown types, types that contradict sharing, and foreign VAEs."""
    with pytest.raises(ValueError, match="attn_types must be of full, axial_row"):
        make(attn_types=("axial",))
    with pytest.raises(ValueError, match="'axial_row' in layer 1 but 'full'"):
        make(attn_types=("full", "axial_row"), shared_attn_ids=(0,))
    with pytest.raises(ValueError, match="vae must have decode"):
        DALLE(vae=object(), **SIZES)
    with pytest.raises(ValueError, match="did you mean 'dim_head'"):
        make(dim_heads=3)


def test_cost_counts_the_pairs_that_are_read():
    """Rows cost fewer operations and cache bytes than dense attention."""
    rows, full = (cost(make(attn_types=t)) for t in ("axial_row", "full"))
    assert rows.flops_per_token < full.flops_per_token
    assert rows.cache_bytes_per_token < full.cache_bytes_per_token


def test_named_sizes():
    """Models by name; the tiny one runs."""
    assert {"dalle", "dalle_tiny", "dalle_small"} <= set(list_models("dalle*"))
    model = create_model("dalle_tiny", depth=1)
    assert model(torch.ones(1, 3, dtype=torch.long)).shape == (1, 33, 2048 + 32 + 512)


def test_schedule_of_the_paper():
    """64 layers: 47 of rows, 16 of columns, one convolutional; pairs as counted from the paper."""
    schedule = paper_schedule(64)
    assert schedule[:5] == ("paper_row", "paper_col", "paper_row", "paper_row", "paper_row")
    counts = {kind: schedule.count(kind) for kind in set(schedule)}
    assert counts == {"paper_row": 47, "paper_col": 16, "paper_conv": 1}
    pairs = {kind: pattern_of(kind, 256, (32, 32)).num_pairs(1280) for kind in counts}
    assert pairs == {"paper_row": 328_304, "paper_col": 311_936, "paper_conv": 352_209}


def test_autocast():
    """bfloat16 autocast trains and decodes."""
    model = make(attn_types=ALL)
    text, image = inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.train()(text, image, return_loss=True)
        tokens = model.generate_image_tokens(text, seed=0)
    loss.backward()
    assert math.isfinite(loss.item())
    assert tokens.shape == (2, 12)


def test_activation_checkpointing():
    """Recomputing layers changes no gradient."""
    grads = []
    for enabled in (False, True):
        model = make(attn_types=ALL).train().activation_checkpointing(enabled)
        model(*inputs(), return_loss=True).backward()
        grads.append(model.text_emb.weight.grad)
    assert torch.equal(*grads)
    assert model.transformer.checkpointing
