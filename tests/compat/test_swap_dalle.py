"""dalle_pytorch by import swap: layers, transformer, models; and what the package fails at."""

import copy
import importlib
import pickle

import pytest
import torch
from parity import CLOSE, check, noise, padding, pair

import foveal
from foveal.compat.dalle_pytorch import CLIP, DALLE, DiscreteVAE

ATTENTION, TRANSFORMER = "dalle_pytorch.attention", "dalle_pytorch.transformer"
MODELS = "dalle_pytorch.dalle_pytorch"
SIDE, TEXT = 4, 5
SEQ = SIDE * SIDE + TEXT - 1
SIZES = {"heads": 2, "dim_head": 16}
VAE = {"image_size": 16, "num_tokens": 20, "codebook_dim": 8, "num_layers": 2, "hidden_dim": 8}
MODEL = {"dim": 16, "depth": 4, "num_text_tokens": 9, "text_seq_len": 4, **SIZES}
ALL = ("full", "axial_row", "axial_col", "conv_like")
CLIP_SIZES = {"dim_text": 8, "dim_image": 12, "dim_latent": 6, "num_text_tokens": 20}
CLIP_SIZES |= {"text_enc_depth": 2, "text_seq_len": 6, "text_heads": 2, "visual_enc_depth": 1}
CLIP_SIZES |= {"visual_heads": 2, "visual_image_size": 8, "visual_patch_size": 4}


def words():
    return torch.randint(1, 9, (2, 4), generator=torch.Generator().manual_seed(0))


def pixels(count=16):
    return torch.randint(0, 20, (2, count), generator=torch.Generator().manual_seed(0))


def made(peer=None, **options):
    """The package's DALLE, or ours, with scales that matter."""
    torch.manual_seed(0)
    module = importlib.import_module(f"foveal.compat.{MODELS}") if peer is None else peer(MODELS)
    model = module.DALLE(vae=module.DiscreteVAE(**VAE), **{**MODEL, **options})
    for name, parameter in model.named_parameters():
        if name.endswith("scale"):
            parameter.data.uniform_(0.5, 1.5)
    return model


# -- layers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("Attention", {}),
        ("Attention", {"causal": False}),
        ("Attention", {"stable": True}),
        ("SparseConvCausalAttention", {"image_size": SIDE, "kernel_size": 3, "causal": True}),
        ("SparseAxialCausalAttention", {"image_size": SIDE, "axis": 1, "whatever": 3}),
    ],
)
def test_layers(peer, name, options):
    """Every layer, with keywords that the package swallows, with and without rotary angles."""
    theirs, ours = pair(peer, ATTENTION, name, (16, SEQ), {**SIZES, **options})
    angles = foveal.layers.grid_rotary.text_image_angles(TEXT, (SIDE, SIDE), 16)[None]
    for count in (SEQ, SEQ - 3):
        check(theirs, ours, noise(2, count, 16))
        check(theirs, ours, noise(2, count, 16), rotary_pos_emb=angles)


def test_parts(peer):
    """Scales, norms, feed-forward, shifted tokens, keys of caches."""
    theirs, ours = pair(peer, TRANSFORMER, "FeedForward", (16,), {"mult": 3})
    check(theirs, ours, noise(2, 5, 16))
    both = peer(TRANSFORMER), importlib.import_module(f"foveal.compat.{TRANSFORMER}")
    linear = torch.nn.Linear(16, 16)

    class Told(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.fn = linear

        def forward(self, x, cache=None, cache_key=None):
            return self.fn(x)

    for make in (
        lambda m: m.LayerScale(16, 20, linear),
        lambda m: m.PreNorm(16, linear, sandwich=True),
        lambda m: m.DivideMax(-1),
        lambda m: torch.nn.Sequential(torch.nn.Identity(), m.GEGLU()),
        lambda m: m.PreShiftToken(Told(), SIDE, SEQ),
        lambda m: m.CachedAs("a", Told()),
        lambda m: m.NonCached(linear),
    ):
        theirs, ours = map(make, both)
        assert theirs.state_dict().keys() == ours.state_dict().keys()
        for count in (SEQ, TEXT + 1, TEXT - 1):
            check(theirs, ours, noise(2, count, 16))


@pytest.mark.parametrize(
    "options",
    [
        {"attn_types": ALL, "shift_tokens": True},
        {"attn_types": ALL, "sandwich_norm": True, "reversible": True},
        {"attn_types": ("full", "axial_row"), "shared_attn_ids": (0, 1), "shared_ff_ids": (0,)},
        {"rotary_emb": False, "causal": False},
    ],
    ids=["shift", "reversible", "shared", "encoder"],
)
def test_transformer(peer, options):
    """The transformer alone: parameters by their names, outputs and gradients."""
    options = {"dim": 16, "depth": 4, "seq_len": SEQ, "image_fmap_size": SIDE, **SIZES, **options}
    theirs, ours = pair(peer, TRANSFORMER, "Transformer", (), options)
    names = [{n: p.shape for n, p in m.named_parameters()} for m in (theirs, ours)]
    assert names[0] == names[1]
    for count in (SEQ, SEQ - 5):
        check(theirs, ours, noise(2, count, 16))
    if not options.get("causal", True):
        check(theirs, ours, noise(2, SEQ, 16), mask=padding(2, SEQ, SEQ - 3))


@pytest.mark.parametrize("shift", [False, True])
def test_transformer_with_a_cache(shift):
    """Token by token from a dict equals the whole, for every kind of attention; not in theirs."""
    torch.manual_seed(0)
    module = importlib.import_module(f"foveal.compat.{TRANSFORMER}")
    sizes = {"dim": 16, "depth": 4, "seq_len": SEQ, "image_fmap_size": SIDE, **SIZES}
    model = module.Transformer(**sizes, attn_types=ALL, shift_tokens=shift).eval()
    x, cache, parts = noise(2, SEQ, 16), {"offset": 0}, []
    for first, last in ((0, TEXT + 2), *((i, i + 1) for i in range(TEXT + 2, SEQ))):
        parts.append(model(x[:, first:last], cache=cache))
        cache["offset"] += last - first
    torch.testing.assert_close(torch.cat(parts, 1), model(x), **CLOSE)


# -- models -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"attn_types": ALL},
        {"reversible": True, "shift_tokens": False},
        {"sandwich_norm": True, "stable": True},
        {"rotary_emb": False},
        {"share_input_output_emb": True, "attn_types": ("axial_row", "conv_like")},
        {"shared_attn_ids": (0, 1), "shared_ff_ids": (0,), "optimize_for_inference": True},
    ],
    ids=["all", "reversible", "sandwich", "learned", "tied", "shared"],
)
def test_dalle(peer, options):
    """State dicts load both ways, strictly; logits, loss, and the gradients of shared names."""
    theirs, ours = made(peer, **options), made(**options)
    wanted = theirs.state_dict()
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in wanted.items()
    }
    ours.load_state_dict(wanted, strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for count in (0, 1, 7, 16):
        with torch.no_grad():
            got = ours(words(), pixels(count))
            torch.testing.assert_close(got, theirs(words(), pixels(count)), **CLOSE)
    losses = [m.train()(words(), pixels(), return_loss=True) for m in (theirs, ours)]
    torch.testing.assert_close(losses[1], losses[0], **CLOSE)
    for loss in losses:
        loss.backward()
    grads = [{n: p.grad for n, p in m.named_parameters()} for m in (theirs, ours)]
    assert grads[0].keys() == grads[1].keys()
    for name, grad in grads[0].items():
        if grad is not None:
            torch.testing.assert_close(grads[1][name], grad, atol=1e-5, rtol=1e-4, msg=name)
    pictures = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(
        ours(words(), pictures, return_loss=True), theirs(words(), pictures, return_loss=True)
    )


def test_the_vae_and_clip(peer):
    """Positional keywords, `norm`, tokens, normalised pictures; similarities and loss."""
    torch.manual_seed(0)
    theirs, ours = pair(peer, MODELS, "DiscreteVAE", (16, 20, 8, 2, 1, 8))
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(ours.norm(images), theirs.norm(images))
    tokens = theirs.get_codebook_indices(images)
    assert torch.equal(ours.get_codebook_indices(images), tokens)
    torch.testing.assert_close(ours.decode(tokens), theirs.decode(tokens))
    theirs, ours = pair(peer, MODELS, "CLIP", (), CLIP_SIZES)
    text, images = torch.randint(0, 20, (3, 6)), torch.rand(3, 3, 8, 8)
    mask = torch.arange(6) < torch.tensor([[1], [3], [6]])
    for text_mask in (None, mask):
        torch.testing.assert_close(ours(text, images, text_mask), theirs(text, images, text_mask))
    assert CLIP(**CLIP_SIZES).temperature.item() == 1.0


def test_helpers(peer):
    """The small functions, draws included."""
    theirs, ours = peer(MODELS), importlib.import_module(f"foveal.compat.{MODELS}")
    t, mask = noise(2, 5, 4), padding(2, 5, 3)
    for name, args in (
        ("masked_mean", (t, mask)),
        ("log", (t,)),
        ("top_k", (t[0],)),
        ("top_k", (t[0], 1.0)),
        ("gumbel_noise", (t,)),
        ("gumbel_sample", (t, 0.5)),
        ("prob_mask_like", ((3, 4), 0.4, "cpu")),
    ):
        results = []
        for module in (theirs, ours):
            torch.manual_seed(0)
            results.append(getattr(module, name)(*args))
        torch.testing.assert_close(*results)
    assert ours.always(3)(t, 1, y=2) == 3
    assert ours.is_empty(t[:0])
    assert not ours.is_empty(t)
    linear = torch.nn.Linear(4, 9)
    two = [m.SharedEmbedding(linear, 2, 7) for m in (theirs, ours)]
    assert two[0].state_dict().keys() == two[1].state_dict().keys()
    assert torch.equal(*(one(torch.tensor([0, 4])) for one in two))
    ours.set_requires_grad(linear, False)
    assert not linear.weight.requires_grad
    theirs, ours = peer(ATTENTION), importlib.import_module(f"foveal.compat.{ATTENTION}")
    torch.testing.assert_close(ours.stable_softmax(t, 1), theirs.stable_softmax(t, 1))
    assert list(ours.uniq([2, 1, 2])) == list(theirs.uniq([2, 1, 2]))
    assert ours.max_neg_value(t) == theirs.max_neg_value(t)
    assert ours.default(None, lambda: 2) == 2
    angles = foveal.layers.grid_rotary.text_image_angles(TEXT, (SIDE, SIDE), 16)[None]
    qkv = [noise(2, 3, 7, 16) for _ in range(3)]
    for mine, wanted in zip(
        ours.apply_pos_emb(angles, qkv), theirs.apply_pos_emb(angles, qkv), strict=True
    ):
        torch.testing.assert_close(mine, wanted, **CLOSE)
    assert importlib.import_module(f"foveal.compat.{TRANSFORMER}").cast_tuple([1], 3) == [1]


# -- what the package gets wrong ----------------------------------------------------------------


def test_guidance_and_caches():
    """With a cache, guided or not, each step gives the logits of the whole; texts stay."""
    model, text = made(attn_types=ALL).eval(), words()
    for scale in (1, 3):
        whole = model.forward_with_cond_scale(text, pixels(), cond_scale=scale)
        cache = {}
        got = model.forward_with_cond_scale(text, pixels()[:, :3], cond_scale=scale, cache=cache)
        torch.testing.assert_close(got, whole[:, :8], **CLOSE)
        assert cache["offset"] == 8
        for count in range(4, 16):
            image = pixels()[:, :count]
            got = model.forward_with_cond_scale(text, image, cond_scale=scale, cache=cache)
            torch.testing.assert_close(got[:, 0], whole[:, 4 + count], **CLOSE)
    assert torch.equal(text, words())


def test_generation():
    """Pictures, primed pictures, scores and texts come out whole, in evaluation mode."""
    model = made(attn_types=ALL).train()
    clip = CLIP(**{**CLIP_SIZES, "text_seq_len": 4, "visual_image_size": 16})
    images, scores = model.generate_images(words(), clip=clip, filter_thres=0.9, use_cache=True)
    assert images.shape == (2, 3, 16, 16)
    assert scores.shape == (2,)
    primed = model.generate_images(
        words(), img=torch.rand(2, 3, 16, 16), num_init_img_tokens=3, cond_scale=2.0
    )
    assert primed.shape == images.shape
    assert model.training

    class Letters:
        def encode(self, text):
            return [ord(letter) - 96 for letter in text]

        def decode(self, ids):
            return "".join(chr(96 + i) for i in ids)

    tokens, texts = model.generate_texts(Letters(), "ab", filter_thres=0.9)
    assert tokens.shape == (1, 4)
    assert texts[0].startswith("ab")


def test_by_default_half_of_the_vocabulary_is_cut(monkeypatch):
    """filter_thres=.5, as there: the least likely half is never drawn."""
    model, seen = made().eval(), []
    draw = foveal.generation.sampling.Sampler.__call__
    monkeypatch.setattr(
        foveal.generation.sampling.Sampler,
        "__call__",
        lambda self, *args, **kw: (seen.append(self.top_k), draw(self, *args, **kw))[1],
    )
    model.generate_images(words())
    assert set(seen) == {model.total_tokens // 2}


def test_models_are_copied_pickled_nested_and_saved(tmp_path):
    """The package's names go wherever a model goes; foveal's own computes the same with them."""
    model, x = made(attn_types=ALL).eval(), (words(), pixels(5))
    with torch.no_grad():
        wanted = model(*x)
        for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(again(*x), wanted)
            assert again.state_dict().keys() == model.state_dict().keys()
        outer = torch.nn.ModuleDict({"net": model})
        names = {f"net.{name}" for name in model.state_dict()}
        assert set(outer.state_dict()) == names
        outer.load_state_dict(outer.state_dict(), strict=True)
        config = {"text_seq_len": 4, "heads": 2, "attn_types": ALL, "vae_params": VAE}
        foveal.load_upstream(model.state_dict(), config=config).save_pretrained(tmp_path)
        saved = foveal.load_model(tmp_path)
        torch.testing.assert_close(saved(*x), wanted, **CLOSE)
        assert foveal.save_upstream(saved).keys() == model.state_dict().keys()


def test_a_vae_that_cannot_be_made_says_what_to_do():
    """The names are there to be imported, and asked by isinstance."""
    from foveal.compat.dalle_pytorch import OpenAIDiscreteVAE, VQGanVAE

    for cls in (OpenAIDiscreteVAE, VQGanVAE):
        with pytest.raises(NotImplementedError, match=r"DALLE\(vae=\.\.\.\)"):
            cls()
    assert not isinstance(DiscreteVAE(**VAE), (OpenAIDiscreteVAE, VQGanVAE))


def test_the_hourglass_call_of_attention():
    """foveal.Attention(512, 8, 64) names the class that is meant; so do its kin."""
    for call in ((512, 8, 64), (512, 8, 1.0), (64, 8, "causal"), (512, 8, None)):
        with pytest.raises(ValueError, match="hourglass_transformer_pytorch"):
            foveal.Attention(*call)
    with pytest.raises(ValueError, match="causal must be True or False"):
        foveal.SparseAttention(512, 256, 64)
    with pytest.raises(ValueError, match="causal must be True or False"):
        foveal.SparseConvCausalAttention(512, SEQ, SIDE, causal=3)
    assert foveal.Attention(512, 8, True).causal


def test_what_is_missing_is_named():
    """Rotary positions without an image, an unknown kind, a filled cache without a token."""
    module = importlib.import_module(f"foveal.compat.{TRANSFORMER}")
    with pytest.raises(ValueError, match="image_fmap_size"):
        module.Transformer(dim=8, depth=1, seq_len=4)
    with pytest.raises(ValueError, match="image_fmap_size"):
        module.Transformer(dim=8, depth=1, seq_len=4, rotary_emb=False, attn_types="conv_like")
    with pytest.raises(ValueError, match="attn_types must be of full"):
        module.Transformer(dim=8, depth=1, seq_len=4, rotary_emb=False, attn_types=["ful"])
    model = made()
    with pytest.raises(ValueError, match="text_seq_len"):
        model(torch.ones(1, 9, dtype=torch.long))
    with pytest.raises(ValueError, match="needs an image"):
        model(words(), return_loss=True)
    with pytest.raises(ValueError, match="square"):
        DALLE(vae=foveal.DiscreteVAE(**{**VAE, "image_size": (16, 32)}), **MODEL)
    with pytest.raises(ValueError, match="vae must have"):
        DALLE(vae=object(), **MODEL)
