"""save_upstream: a model goes back to the package it came from, or an error says why not."""

import importlib

import pytest
import torch
from safetensors.torch import load_file

import foveal
from foveal.compat import load_upstream, save_upstream

H = {"num_tokens": 30, "dim": 16, "depth": 2, "heads": 2, "dim_head": 8, "max_seq_len": 64}
HOUR = {"num_tokens": 30, "dim": 16, "max_seq_len": 24, "heads": 2, "dim_head": 8}
VAE = {"image_size": 16, "num_tokens": 20, "codebook_dim": 8, "num_layers": 2, "hidden_dim": 8}
DALLE = {"dim": 16, "depth": 4, "heads": 2, "dim_head": 16, "num_text_tokens": 9}
DALLE |= {"text_seq_len": 4, "attn_types": ("full", "axial_row", "axial_col", "conv_like")}
CLIP = {"dim_text": 8, "dim_image": 12, "dim_latent": 6, "num_text_tokens": 20}
CLIP |= {"text_enc_depth": 2, "text_seq_len": 6, "text_heads": 2, "visual_enc_depth": 1}
CLIP |= {"visual_heads": 2, "visual_image_size": 8, "visual_patch_size": 4}

MODELS = {
    "encoder": ("h_transformer_1d", "HTransformer1D", {**H, "block_size": 8}, {"block_size": 8}),
    "decoder": ("h_transformer_1d", "HTransformer1D", {**H, "block_size": 8, "causal": True}, {}),
    "shifted": (
        "h_transformer_1d",
        "HTransformer1D",
        {**H, "block_size": 8, "causal": True, "shift_tokens": True},
        {},
    ),
    "reversible": (
        "h_transformer_1d",
        "HTransformer1D",
        {**H, "block_size": 8, "reversible": True},
        {"block_size": 8},
    ),
    "hourglass": (
        "hourglass_transformer_pytorch",
        "HourglassTransformerLM",
        {**HOUR, "depth": (1, (1, 1, 1), 2), "shorten_factor": 2},
        {"heads": 2, "shorten_factor": 2},
    ),
    "hourglass, linear": (
        "hourglass_transformer_pytorch",
        "HourglassTransformerLM",
        {**HOUR, "depth": (1, 1, 1), "shorten_factor": 3, "updown_sample_type": "linear"},
        {"heads": 2},
    ),
    "hourglass, plain": (
        "hourglass_transformer_pytorch",
        "HourglassTransformerLM",
        {**HOUR, "depth": 2},
        {"heads": 2},
    ),
    "sepvit": (
        "vit_pytorch.sep_vit",
        "SepViT",
        {"num_classes": 4, "dim": 8, "depth": (1, 2), "heads": (1, 2)},
        {},
    ),
    "dssa": ("vit_pytorch.sep_vit", "DSSA", {"dim": 8, "heads": 2, "dim_head": 4}, {}),
    "halo": (
        "halonet_pytorch.halonet_pytorch",
        "HaloAttention",
        {"dim": 8, "block_size": 4, "halo_size": 2, "heads": 2, "dim_head": 4},
        {"block_size": 4, "halo_size": 2},
    ),
    "vae": ("dalle_pytorch.dalle_pytorch", "DiscreteVAE", {**VAE, "num_resnet_blocks": 1}, {}),
    "clip": ("dalle_pytorch.dalle_pytorch", "CLIP", CLIP, {}),
}
for _name, _more in {
    "dalle": {},
    "dalle, reversible": {"reversible": True},
    "dalle, sandwich": {"sandwich_norm": True, "shift_tokens": False},
    "dalle, learned": {"rotary_emb": False},
    "dalle, tied": {"share_input_output_emb": True, "stable": True},
    "dalle, shared": {"attn_types": ("full",), "shared_attn_ids": (0, 1), "shared_ff_ids": (0,)},
}.items():
    _config = {"text_seq_len": 4, "heads": 2, "num_text_tokens": 9, "vae_params": VAE}
    _config |= {k: v for k, v in {**DALLE, **_more}.items() if "attn" in k or "shared" in k}
    _config |= {"stable": True} if "stable" in _more else {}
    MODELS[_name] = ("dalle_pytorch.dalle_pytorch", "DALLE", {**DALLE, **_more}, _config)


def package_model(peer, name):
    module, cls, options, _ = MODELS[name]
    torch.manual_seed(0)
    module = peer(module)
    if cls == "DALLE":
        options = {**options, "vae": module.DiscreteVAE(**VAE)}
    return getattr(module, cls)(**options)


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back(name, peer, tmp_path):
    """Loaded, saved: the package's own state dict, to the last bit, from memory and from files."""
    theirs = package_model(peer, name)
    wanted = theirs.state_dict()
    ours = load_upstream(wanted, config=dict(MODELS[name][3]))
    found = save_upstream(ours, tmp_path / "weights.pt")
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        if key.endswith(("pos_emb", "freqs")):
            torch.testing.assert_close(found[key], value, msg=key)
        else:
            assert torch.equal(found[key], value), key
    again = package_model(peer, name)
    again.load_state_dict(found, strict=True)
    again.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True), strict=True)
    save_upstream(ours, tmp_path / "weights.safetensors")
    again.load_state_dict(load_file(tmp_path / "weights.safetensors"), strict=True)


def test_timm(peer):
    """A HaloAttn of timm, keys and values side by side head by head, and back."""
    attention = peer("timm.layers.halo_attn").HaloAttn
    for options in ({}, {"stride": 2, "block_size": 8}, {"qkv_bias": True, "qk_ratio": 0.5}):
        theirs = attention(32, num_heads=4, **options)
        wanted = theirs.state_dict()
        config = {k: v for k, v in options.items() if k == "stride"}
        config |= {"num_heads": 4, "block_size": options.get("block_size", 8)}
        found = save_upstream(load_upstream(wanted, config=config))
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)


REFUSED = {
    "corrected h-transformer": (lambda: foveal.HTransformer1D(**H), "compat"),
    "corrected hourglass": (lambda: foveal.HourglassTransformerLM(**HOUR), "compat"),
    "paper's norms": (
        lambda: foveal.HourglassTransformerLM(**HOUR, depth=2, positions="absolute"),
        "norms",
    ),
    "another window": (lambda: foveal.SepViT(dim=8, depth=(1,), heads=1, window_size=4), "window"),
    "no halo": (lambda: foveal.HaloAttention(8, 4, 0), "halo"),
    "a bias": (lambda: foveal.HaloAttention(8, 4, 1, qkv_bias=True), "qkv_bias"),
    "padding is no word": (lambda: foveal.CLIP(**CLIP), "mask_padding"),
    "pixels in [0, 1]": (lambda: foveal.DiscreteVAE(**VAE), "compat"),
    "no vae": (lambda: foveal.DALLE(**DALLE, compat="dalle-pytorch-1.6.6"), "vae"),
    "paper's rows": (
        lambda: foveal.DALLE(**{**DALLE, "attn_types": "paper_row"}, rotary_emb=False),
        "paper_row",
    ),
    "random blocks": (
        lambda: foveal.DALLE(**{**DALLE, "attn_types": "sparse"}, rotary_emb=False),
        "sparse",
    ),
    "no square": (
        lambda: foveal.DiscreteVAE(
            **{**VAE, "image_size": (16, 32)}, compat="dalle-pytorch-1.6.6"
        ),
        "square",
    ),
    "no package has it": (lambda: foveal.TransformerLM(dim=8, depth=1, heads=1), "no public"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_mean_something_else(name):
    """The error is one line and names what the package computes otherwise."""
    make, word = REFUSED[name]
    with pytest.raises(ValueError, match=word) as caught:
        save_upstream(make())
    assert "\n" not in str(caught.value)


def test_a_named_package():
    """package= asks for one; another's model, and an unknown name, are refused."""
    layer = foveal.HaloAttention(8, 4, 1)
    assert save_upstream(layer, package="halonet-pytorch").keys() == layer.state_dict().keys()
    for package in ("timm", "vit-pytorch", "halonet"):
        with pytest.raises(ValueError, match=r"out_proj|like HaloAttention|halonet-pytorch"):
            save_upstream(layer, package=package)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["decoder", "encoder", "dalle", "clip", "hourglass"])
def test_checkpoints_of_any_precision(name, dtype, peer):
    """Weights and rotary tables in half or double precision load, and go back as they came."""
    weights = package_model(peer, name).to(dtype).state_dict()
    ours = load_upstream(weights, config=dict(MODELS[name][3]))
    found = save_upstream(ours)
    for key, value in weights.items():
        if value.is_floating_point() and not key.endswith(("pos_emb", "freqs")):
            assert found[key].dtype == dtype
            assert torch.equal(found[key], value), key


def test_every_package_can_be_read_by_its_swap(peer):
    """The swap's own classes load what save_upstream gives."""
    for name in ("decoder", "shifted", "hourglass"):
        module, cls, options, config = MODELS[name]
        ours = load_upstream(package_model(peer, name).state_dict(), config=dict(config))
        swap = getattr(importlib.import_module(f"foveal.compat.{module}"), cls)(**options)
        swap.load_state_dict(save_upstream(ours), strict=True)
        tokens = torch.randint(0, 30, (1, 24))
        torch.testing.assert_close(swap.eval()(tokens), ours(tokens), atol=1e-5, rtol=1e-5)
