"""Checkpoints of dalle-pytorch: the same logits, refusals that name what is wrong."""

from __future__ import annotations

import math
import os

import pytest
import torch

from foveal.interop import load_upstream
from foveal.models import DALLE, DiscreteVAE

ALL = ("full", "axial_row", "axial_col", "conv_like")
VAE = {"image_size": 32, "num_tokens": 20, "codebook_dim": 16, "num_layers": 3, "hidden_dim": 8}
SIZES = {
    "dim": 32,
    "depth": 4,
    "heads": 2,
    "dim_head": 16,
    "num_text_tokens": 50,
    "text_seq_len": 6,
    "attn_types": ALL,
}
VARIANTS = {
    "plain": {"shift_tokens": False},
    "shift": {"shift_tokens": True},
    "reversible": {"reversible": True},
    "shared": {
        "attn_types": ("full", "conv_like"),
        "shared_attn_ids": (0, 1),
        "shared_ff_ids": (0,),
    },
    "shared, cycled": {
        "attn_types": ("axial_row", "axial_row", "full", "full"),
        "shared_attn_ids": (3, 3, 1, 1),
    },
    "learned positions": {"rotary_emb": False},
    "sandwich": {"sandwich_norm": True},
    "stable": {"stable": True},
    "shared embeddings": {"share_input_output_emb": True},
    "static masks": {"optimize_for_inference": True},
}


def package_model(peer, **options):
    torch.manual_seed(0)
    module = peer("dalle_pytorch.dalle_pytorch")
    model = module.DALLE(vae=module.DiscreteVAE(**VAE), **{**SIZES, **options}).eval()
    for name, parameter in model.named_parameters():  # the layer scales start near 0
        if name.endswith("scale"):
            parameter.data.uniform_(0.5, 1.5)
    return model


def checkpoint(model, **options):
    """What train_dalle.py saves."""
    return {
        "hparams": {**SIZES, **options},
        "vae_params": dict(VAE),
        "epoch": 3,
        "version": "1.6.6",
        "vae_class_name": "DiscreteVAE",
        "weights": model.state_dict(),
        "opt_state": {"state": {0: {"step": 1, "exp_avg": torch.zeros(2)}}},
        "scheduler_state": None,
    }


def inputs():
    torch.manual_seed(1)
    return torch.randint(0, 50, (2, 6)), torch.randint(0, 20, (2, 16))


@pytest.mark.parametrize("name", VARIANTS)
def test_logits_of_a_checkpoint(name, peer, tmp_path):
    """A dalle.pt gives the package's logits to 1e-5, for any number of image tokens."""
    options = VARIANTS[name]
    theirs = package_model(peer, **options)
    torch.save(checkpoint(theirs, **options), tmp_path / "dalle.pt")
    ours = load_upstream(tmp_path / "dalle.pt")
    assert isinstance(ours, DALLE)
    assert ours.settings.compat == "dalle-pytorch-1.6.6"
    text, image = inputs()
    for count in (0, 1, 7, 16):
        with torch.no_grad():
            wanted = theirs(text.clone(), image[:, :count])
            torch.testing.assert_close(ours(text, image[:, :count]), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["shift", "reversible", "shared"])
def test_cached_decoding_of_a_checkpoint(name, peer):
    """Decoding with a cache gives the logits of the package's forward pass."""
    options = VARIANTS[name]
    theirs = package_model(peer, **options)
    ours = load_upstream(checkpoint(theirs, **options))
    text, image = inputs()
    with torch.no_grad():
        wanted = theirs(text.clone(), image)[:, 6:, 56:]
    logits, cache = ours.prefill(text, image[:, :2])
    for i in range(2, 16):
        torch.testing.assert_close(logits, wanted[:, i], atol=1e-5, rtol=1e-5)
        if i < 15:
            logits, cache = ours.step(image[:, i], cache)


def test_loss_and_gradient(peer):
    """The loss of an imported model and its gradients are the package's."""
    theirs = package_model(peer)
    ours = load_upstream(checkpoint(theirs))
    text, image = inputs()
    losses = [model(text.clone(), image, return_loss=True) for model in (theirs, ours)]
    torch.testing.assert_close(losses[1], losses[0], atol=1e-5, rtol=1e-5)
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(
        ours.image_emb.weight.grad, theirs.image_emb.weight.grad, atol=1e-5, rtol=1e-4
    )


def test_corrected_mathematics_differ(peer):
    """compat=None keeps the weights and stops turning the values."""
    theirs = package_model(peer)
    ours = load_upstream(checkpoint(theirs), compat=None)
    text, image = inputs()
    with torch.no_grad():
        wanted, got = theirs(text.clone(), image), ours(text, image)
    assert (wanted - got)[wanted > -1e30].abs().max() > 1e-3


def test_a_bare_state_dict(peer):
    """Weights alone need only what their shapes do not tell."""
    theirs = package_model(peer)
    config = {"text_seq_len": 6, "heads": 2, "attn_types": ALL}
    ours = load_upstream(theirs.state_dict(), config=config)
    text, image = inputs()
    with torch.no_grad():
        wanted = theirs(text.clone(), image)
        torch.testing.assert_close(ours(text, image), wanted, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="text_seq_len"):
        load_upstream(theirs.state_dict(), config={"heads": 2})
    with pytest.raises(ValueError, match="did you mean 'heads'"):
        load_upstream(theirs.state_dict(), config={"text_seq_len": 6, "haeds": 2})


def test_mismatches_name_both_numbers(peer):
    """A text length or grid that does not fit the weights is named beside what they have."""
    saved = checkpoint(package_model(peer))
    with pytest.raises(ValueError, match=r"17 image positions beside text_seq_len=5.*4 x 4"):
        load_upstream({**saved, "hparams": {"heads": 2, "text_seq_len": 5}})
    with pytest.raises(ValueError, match=r"num_text_tokens=50 .*num_text_tokens=51"):
        load_upstream({**saved, "hparams": {**SIZES, "text_seq_len": 5}})
    with pytest.raises(ValueError, match=r"num_tokens=30 .*num_tokens=20"):
        load_upstream({**saved, "vae_params": {**VAE, "num_tokens": 30}})
    with pytest.raises(ValueError, match=r"dim=64 .*dim=32"):
        load_upstream({**saved, "hparams": {**SIZES, "dim": 64}})


def test_shared_layers_must_be_shared(peer):
    """Ids that the weights contradict are an error, not a silent choice of one layer."""
    saved = checkpoint(package_model(peer, attn_types=("full",)), attn_types=("full",))
    saved["hparams"]["shared_attn_ids"] = (0,)
    with pytest.raises(ValueError, match="shared_attn_ids"):
        load_upstream(saved)


def test_a_malicious_pickle_is_refused(tmp_path):
    """Nothing in a file is executed."""

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'owned'}",)

    torch.save({"weights": {"a": torch.zeros(1)}, "hparams": Evil()}, tmp_path / "dalle.pt")
    with pytest.raises(ValueError, match="could execute code"):
        load_upstream(tmp_path / "dalle.pt")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("options", [{}, {"num_resnet_blocks": 2}], ids=["plain", "resnet"])
def test_vae(options, peer, tmp_path):
    """A vae.pt gives the package's tokens and pictures."""
    torch.manual_seed(0)
    params = {**VAE, **options}
    theirs = peer("dalle_pytorch.dalle_pytorch").DiscreteVAE(**params).eval()
    torch.save({"hparams": params, "weights": theirs.state_dict()}, tmp_path / "vae.pt")
    ours = load_upstream(tmp_path / "vae.pt")
    assert isinstance(ours, DiscreteVAE)
    images = torch.rand(2, 3, 32, 32)
    tokens = theirs.get_codebook_indices(images)
    assert torch.equal(ours.get_codebook_indices(images), tokens)
    assert tokens.shape[1] == math.prod(ours.grid)
    torch.testing.assert_close(ours.decode(tokens), theirs.decode(tokens), atol=1e-5, rtol=1e-5)
