"""A VQModel of diffusers as DALL-E's VAE (`make test-integrations`)."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch.testing import assert_close

import foveal
from foveal.common.packages import how_to_get

diffusers = pytest.importorskip(
    "diffusers", reason=f"diffusers is not installed: {how_to_get('diffusers')}"
)

from foveal.integrations.diffusers import VQModelVAE  # noqa: E402

SIZES: dict[str, Any] = {
    "block_out_channels": (8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "num_vq_embeddings": 24,
    "norm_num_groups": 4,
    "sample_size": 8,
}
DALLE = {"dim": 16, "depth": 1, "heads": 2, "dim_head": 8, "num_text_tokens": 9, "text_seq_len": 3}


def model_of(**options: Any) -> Any:
    torch.manual_seed(0)
    model = diffusers.VQModel(**{**SIZES, **options}).eval()
    side = model.config.sample_size
    with torch.no_grad():  # entries that lie among the features, so that many of them are used
        latents = model.encode(torch.rand(8, model.config.in_channels, side, side) * 2 - 1).latents
        entries = latents.permute(0, 2, 3, 1).flatten(0, 2)[:: latents[:, 0].numel() // 24][:24]
        model.quantize.embedding.weight.copy_(entries)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"vq_embed_dim": 5, "latent_channels": 4},
        {"lookup_from_codebook": True},
        {"norm_type": "spatial", "block_out_channels": (32, 32)},
        {"mid_block_add_attention": False, "sample_size": 12},
        {"in_channels": 1, "out_channels": 1},
    ],
    ids=lambda one: ",".join(one) or "plain",
)
def test_codes_and_pictures_are_those_of_the_vqmodel(options: dict[str, Any]) -> None:
    """Encoding and decoding are its own, between pixels from 0 to 1 and from -1 to 1."""
    model = model_of(**options)
    vae = VQModelVAE(model)
    side = model.config.sample_size
    images = torch.rand(3, vae.channels, side, side)
    with torch.no_grad():
        latents = model.encode(images * 2 - 1).latents
        _, _, (_, _, wanted) = model.quantize(latents)
        back = model.decode(latents).sample if not options.get("lookup_from_codebook") else None
    codes = vae.get_codebook_indices(images)
    assert codes.shape == (3, (side // 2) ** 2)
    assert torch.equal(codes.flatten(), wanted.flatten())
    assert len(codes.unique()) > 3
    pictures = vae.decode(codes)
    if back is None:  # its own way of Amused: codes in, with their shape
        shape = (3, side // 2, side // 2, 3)
        back = model.decode(codes, force_not_quantize=True, shape=shape).sample
    assert_close(pictures, (back / 2 + 0.5).clamp(0, 1), rtol=1e-5, atol=1e-5)
    assert torch.equal(
        vae.get_codebook_indices((images * 255).byte()),
        vae.get_codebook_indices((images * 255).byte() / 255),
    )


def test_a_dalle_trains_on_its_codes_and_draws() -> None:
    """The loss falls, the VQModel stays as it was, and pictures come out."""
    model = model_of()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dalle = foveal.DALLE(vae=VQModelVAE(model), **DALLE)
    text, images = torch.randint(1, 9, (4, 3)), torch.rand(4, 3, 8, 8)
    optimizer = torch.optim.Adam([p for p in dalle.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(12):
        loss = dalle(text, images, return_loss=True)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] * 0.9
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    drawn = dalle.generate_images(text[:1], num_images=2, seed=0)
    assert drawn.shape == (2, 3, 8, 8)
    assert 0 <= float(drawn.min()) <= float(drawn.max()) <= 1
    primed = dalle.generate_image_tokens(text[:1], img=images[:1], num_init_img_rows=2, seed=0)
    assert torch.equal(primed[:, :8], dalle.encode(images[:1])[:, :8])


def test_it_is_saved_with_the_dalle(tmp_path) -> None:
    """Keywords and weights, alone and inside; what is read gives the same pictures."""
    vae = VQModelVAE(model_of(), image_size=(8, 12))
    dalle = foveal.DALLE(vae=vae, **DALLE).eval()
    dalle.save_pretrained(tmp_path / "dalle")
    vae.save_pretrained(tmp_path / "vae")
    text, images = torch.randint(1, 9, (1, 3)), torch.rand(1, 3, 8, 12)
    whole, alone = (foveal.load_model(tmp_path / name) for name in ("dalle", "vae"))
    assert torch.equal(whole.generate_images(text, seed=1), dalle.generate_images(text, seed=1))
    assert torch.equal(alone.get_codebook_indices(images), vae.get_codebook_indices(images))
    assert alone.grid == (4, 6)
    assert isinstance(alone, VQModelVAE)
    assert sorted(path.name for path in (tmp_path / "vae").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("num_vq_embeddings", 25, "does not fit config.json"),
        ("act_fn", "__import__('os').system('touch executed')", "does not describe a model"),
        ("down_block_types", ["no_such.module:Block"] * 2, "does not describe a model"),
        ("act_fn", 5, "does not describe a model"),
        ("norm_num_groups", 0, "does not describe a model"),
        ("block_out_channels", {"a": 1}, "does not describe a model"),
        ("layers_per_block", 10**9, "layers_per_block must be at most"),
        ("remap", "codes.npy", "has no option 'remap'"),
        ("_class_name", "Evil", "has no option '_class_name'"),
    ],
)
def test_a_folder_from_elsewhere_is_read_strictly(tmp_path, monkeypatch, name, value, message):
    """What does not make exactly this VQModel is refused in one line; nothing is executed."""
    monkeypatch.chdir(tmp_path)
    VQModelVAE(model_of()).save_pretrained("vae")
    config = json.loads((tmp_path / "vae" / "config.json").read_text())
    config["config"]["vq"][name] = value
    (tmp_path / "vae" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message) as caught:
        foveal.load_model("vae")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: VQModelVAE(torch.nn.Identity()),
            "must be a diffusers.VQModel, got Identity.*Coder",
        ),
        (lambda: VQModelVAE(model_of(), image_size=9), "must be a multiple of 2"),
        (lambda: VQModelVAE(model_of(out_channels=1)), "must give back what it takes"),
        (lambda: VQModelVAE(model_of(), value_range=(1, -1)), "value_range must go up"),
        (lambda: VQModelVAE(model_of(), size=9), "has no option 'size'"),
        (lambda: VQModelVAE(model_of()).get_codebook_indices(torch.rand(1, 3, 8, 9)), "3, 8, 8"),
        (lambda: VQModelVAE(model_of()).decode(torch.zeros(1, 15).long()), "grid of 4 x 4"),
        (lambda: foveal.DALLE(vae=VQModelVAE(model_of()), num_image_tokens=7, **DALLE), "24, got"),
    ],
)
def test_what_does_not_fit_is_named(make, message) -> None:
    """One line each."""
    with pytest.raises(ValueError, match=message):
        make()


def test_the_command_takes_it(tmp_path, monkeypatch) -> None:
    """A folder of it is the `data.vae` of a recipe, checked before anything is trained."""
    from foveal.recipes.captions.stages import check_stage
    from foveal.recipes.config import load_recipe
    from foveal.recipes.vae.kind import check_size

    monkeypatch.chdir(tmp_path)
    VQModelVAE(model_of()).save_pretrained("vae")
    config = load_recipe("captions-dalle")
    object.__setattr__(config.data, "vae", "vae")
    vae = check_stage(config, "vae", 10)
    assert isinstance(vae, VQModelVAE)
    with pytest.raises(ValueError, match="takes pictures of 8 x 8 pixels"):
        check_size(vae, 16)
