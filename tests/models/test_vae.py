"""Pictures to tokens and back: the public package's numbers, any size, codebooks that are used."""

import pytest
import torch

from foveal.models import VQVAE, DiscreteVAE, cost, load_model
from foveal.models.vae import codebook_use

SMALL = {"num_layers": 2, "num_tokens": 24, "codebook_dim": 12, "hidden_dim": 8}
PACKAGE = "dalle-pytorch-1.6.6"
OPTIONS = [
    {},
    {"num_resnet_blocks": 2},
    {"straight_through": True, "kl_div_loss_weight": 0.1},
    {"straight_through": True, "reinmax": True, "smooth_l1_loss": True},
]


def seeded(function, *args, **kwargs):
    torch.manual_seed(5)
    return function(*args, **kwargs)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_the_package(peer, options):
    """With the package's weights: scores, tokens, losses, pictures and gradients are its own."""
    theirs = seeded(
        peer("dalle_pytorch.dalle_pytorch").DiscreteVAE, image_size=16, **SMALL, **options
    )
    ours = DiscreteVAE(image_size=16, compat=PACKAGE, **SMALL, **options)
    ours.load_state_dict(theirs.state_dict())
    images = torch.rand(3, 3, 16, 16)
    tokens = theirs.get_codebook_indices(images)
    assert torch.equal(ours.get_codebook_indices(images), tokens)
    torch.testing.assert_close(ours.decode(tokens), theirs.decode(tokens))
    torch.testing.assert_close(
        ours(images, return_logits=True), theirs(images, return_logits=True)
    )
    results = []
    for vae in (ours, theirs):
        loss, decoded = seeded(vae, images, return_loss=True, return_recons=True, temp=0.7)
        loss.backward()
        results.append((loss, decoded, vae.encoder[0][0].weight.grad, vae.codebook.weight.grad))
    for mine, wanted in zip(*results, strict=True):
        torch.testing.assert_close(mine, wanted)


def test_divergence_does_not_grow_with_the_batch():
    """The loss of one picture is that of a batch of the same picture, unlike in the package."""
    image, losses = torch.rand(1, 3, 16, 16), {}
    for compat in (None, PACKAGE):
        vae = seeded(DiscreteVAE, image_size=16, kl_div_loss_weight=1.0, compat=compat, **SMALL)
        with torch.no_grad():
            for layer in vae.decoder.parameters():
                layer.zero_()  # leaves the divergence, and a reconstruction without noise
        losses[compat] = [
            vae(image.expand(n, -1, -1, -1), return_loss=True).item() for n in (1, 4)
        ]
    assert losses[None][0] == pytest.approx(losses[None][1], rel=1e-5)
    assert losses[PACKAGE][1] > 2 * losses[PACKAGE][0]


@pytest.mark.parametrize("cls", [DiscreteVAE, VQVAE])
@pytest.mark.parametrize("size", [(16, 24), (7, 13), 17, (1, 1)])
def test_any_size(cls, size):
    """Sizes that are no squares and do not divide: whole tokens, pictures of the same size."""
    vae = cls(image_size=size, **SMALL).eval()
    height, width = (size, size) if isinstance(size, int) else size
    images = torch.rand(2, 3, height, width)
    tokens = vae.get_codebook_indices(images)
    assert vae.grid == (-(-height // 4), -(-width // 4))
    assert tokens.shape == (2, vae.grid[0] * vae.grid[1])
    assert vae(images).shape == images.shape
    assert vae.decode(tokens).shape == images.shape
    assert vae(images, return_loss=True).isfinite()


@pytest.mark.parametrize("cls", [DiscreteVAE, VQVAE])
def test_decodes_to_pixels(cls):
    """What comes out is in [0, 1], whatever the normalization, and also without one."""
    for normalization in (None, ((0.2, 0.3, 0.4), (0.1, 0.1, 0.1))):
        vae = cls(image_size=8, normalization=normalization, **SMALL).eval()
        with torch.no_grad():
            vae.decoder[-1].bias += 30 * torch.tensor([1.0, -1.0, 0.0])
        images = vae.decode(torch.randint(24, (2, 4)))
        assert images.min() == 0
        assert images.max() == 1


def test_training_fits_pictures_and_uses_the_codebook():
    """A VQVAE learns a few pictures in seconds, and most of its codebook is in use."""
    torch.manual_seed(0)
    images = torch.rand(8, 3, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    vae = VQVAE(image_size=16, **(SMALL | {"hidden_dim": 32}))
    optimizer = torch.optim.Adam(vae.parameters(), 3e-3)
    for _ in range(250):
        loss = vae(images, return_loss=True)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    vae.eval()
    error = (vae.decode(vae.get_codebook_indices(images)) - images).square().mean()
    assert error < 0.35 * images.var()
    assert vae.codebook_use(images).used > 0.6


def test_evaluation_leaves_the_codebook_alone():
    """Only training moves the entries; encoding does not."""
    vae = VQVAE(image_size=16, **SMALL)
    images = torch.rand(2, 3, 16, 16)
    before = vae.codebook.weight.clone()
    vae.eval()
    vae(images)
    vae.train()
    vae.get_codebook_indices(images)
    assert torch.equal(vae.codebook.weight, before)
    vae(images)
    assert not torch.equal(vae.codebook.weight, before)


@pytest.mark.parametrize("cls", [DiscreteVAE, VQVAE])
def test_saved_and_loaded(cls, tmp_path):
    """The tokens of a saved model are those of the original."""
    vae = cls(image_size=(8, 12), **SMALL)
    images = torch.rand(2, 3, 8, 12)
    vae(images)  # a codebook of moving averages starts
    vae.eval().save_pretrained(tmp_path)
    again = load_model(tmp_path)
    tokens = vae.get_codebook_indices(images)
    assert torch.equal(again.get_codebook_indices(images), tokens)
    assert torch.equal(again.decode(tokens), vae.decode(tokens))
    assert cost(vae, images).flops == len(images) * cost(vae).flops > 0


def test_codebook_use():
    """Shares of entries and perplexity of simple cases."""
    assert codebook_use(torch.zeros(9, dtype=torch.long), 4) == (
        codebook_use(torch.zeros(1, 1, dtype=torch.long), 4)
    )
    even = codebook_use(torch.arange(4), 8)
    assert even.used == 0.5
    assert even.perplexity == pytest.approx(4)


def test_mistakes_are_named():
    """Another size, another number of tokens and impossible options name what was given."""
    vae = VQVAE(image_size=(16, 24), **SMALL)
    with pytest.raises(ValueError, match=r"16, 24\).*got shape \(1, 3, 24, 16\)"):
        vae(torch.rand(1, 3, 24, 16))
    with pytest.raises(ValueError, match=r"24.*4 x 6.*\(1, 16\)"):
        vae.decode(torch.zeros(1, 16, dtype=torch.long))
    for options, named in [
        ({"image_size": (1, 2, 3)}, "image_size"),
        ({"image_size": 0}, "image_size"),
        ({"normalization": ((0.5,), (0.5,))}, "normalization"),
        ({"num_tokens": 0}, "num_tokens"),
    ]:
        with pytest.raises(ValueError, match=named):
            VQVAE(**options)
    with pytest.raises(ValueError, match="temperature"):
        DiscreteVAE(temperature=0)
    with pytest.raises(ValueError, match="compat"):
        DiscreteVAE(compat="dalle-pytorch-2")


@pytest.mark.parametrize("cls", [DiscreteVAE, VQVAE])
def test_the_size_of_a_picture_may_come_first(cls):
    """DiscreteVAE(32), as dalle-pytorch has it; a pair too; beside other keywords; not twice."""
    assert cls(32, **SMALL).settings == cls(image_size=32, **SMALL).settings
    assert cls((16, 24), num_layers=2).grid == (4, 6)
    assert cls(16, image_size=32).image_size == 32
    for wrong in (0, "32", 1.5, (8,)):
        with pytest.raises(ValueError, match="image_size"):
            cls(wrong)
