"""What the packages' READMEs and training scripts do, with only the import changed; small."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

VAE = {"image_size": 16, "num_layers": 2, "num_tokens": 20, "codebook_dim": 8, "hidden_dim": 8}


def test_halonet():
    """A feature map through the layer."""
    from foveal.compat.halonet_pytorch import HaloAttention

    layer = HaloAttention(dim=32, block_size=8, halo_size=4, dim_head=8, heads=4)
    assert layer(torch.randn(1, 32, 32, 32)).shape == (1, 32, 32, 32)


def test_sep_vit():
    """The classifier, with the options that the package does not use."""
    from foveal.compat.vit_pytorch.sep_vit import SepViT

    net = SepViT(
        num_classes=10,
        dim=8,
        dim_head=32,
        heads=(1, 2, 4, 8),
        depth=(1, 2, 2, 2),
        window_size=7,
        dropout=0.1,
    )
    assert net(torch.randn(1, 3, 224, 224)).shape == (1, 10)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("options", [{}, {"reversible": True}, {"shift_tokens": True}], ids=str)
def test_h_transformer(causal, options):
    """Logits of padded sequences, trained in one step."""
    from foveal.compat.h_transformer_1d import HTransformer1D

    model = HTransformer1D(
        num_tokens=256,
        dim=16,
        depth=2,
        causal=causal,
        max_seq_len=128,
        heads=2,
        dim_head=8,
        block_size=16,
        **options,
    )
    tokens, mask = torch.randint(0, 256, (1, 100)), torch.ones(1, 100).bool()
    logits = model(tokens, mask=mask)
    assert logits.shape == (1, 100, 256)
    logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    "options",
    [
        {"shorten_factor": 2, "depth": (2, 2, 2)},
        {"shorten_factor": (2, 4), "depth": (1, (1, 1, 1), 1)},
        {"shorten_factor": 2, "depth": (1, 1, 1), "attn_resampling": False},
        {"shorten_factor": 2, "depth": (1, (1, (1, 1, 1), 1), 1), "attn_resampling": False},
        {"shorten_factor": 4, "depth": (1, 1, 1), "updown_sample_type": "linear"},
    ],
    ids=str,
)
def test_hourglass(options):
    """Language models over every kind of hourglass, and a body alone that is no decoder."""
    from foveal.compat.hourglass_transformer_pytorch import (
        HourglassTransformer,
        HourglassTransformerLM,
        get_hourglass_transformer,
    )

    sizes = {"num_tokens": 256, "dim": 16, "max_seq_len": 64, "heads": 2, "dim_head": 8}
    model = HourglassTransformerLM(**sizes, **options)
    assert model(torch.randint(0, 256, (1, 64))).shape == (1, 64, 256)
    padded = HourglassTransformerLM(**sizes, causal=False, **options)
    tokens, mask = torch.randint(0, 256, (1, 64)), torch.arange(64)[None] < 50
    assert padded(tokens, mask=mask).shape == (1, 64, 256)
    body = HourglassTransformer(dim=16, heads=2, dim_head=8, causal=False, **options)
    mask = torch.ones(1, 30).bool()
    assert body(torch.randn(1, 30, 16), mask=mask).shape == (1, 30, 16)
    plain = get_hourglass_transformer(
        16, depth=1, shorten_factor=None, attn_resampling=True, updown_sample_type="naive"
    )
    assert plain(torch.randn(1, 5, 16)).shape == (1, 5, 16)


@pytest.mark.parametrize("package", ["h_transformer_1d", "hourglass_transformer_pytorch"])
def test_training_on_bytes(package):
    """train.py of both: batches of text, accumulated gradients, validation, a sample."""
    if package == "h_transformer_1d":
        from foveal.compat.h_transformer_1d import HTransformer1D
        from foveal.compat.h_transformer_1d.autoregressive_wrapper import AutoregressiveWrapper

        sizes = {"block_size": 8, "max_seq_len": 32, "depth": 1, "causal": True}
        net = HTransformer1D(num_tokens=256, dim=16, heads=2, dim_head=8, **sizes)
    else:
        from foveal.compat.hourglass_transformer_pytorch import HourglassTransformerLM
        from foveal.compat.hourglass_transformer_pytorch.autoregressive_wrapper import (
            AutoregressiveWrapper,
        )

        sizes = {"max_seq_len": 32, "depth": (1, 1, 1), "shorten_factor": 2}
        net = HourglassTransformerLM(num_tokens=256, dim=16, heads=2, dim_head=8, **sizes)
    torch.manual_seed(0)
    model = AutoregressiveWrapper(net)
    text = np.frombuffer(b"the same words again and again, " * 8, dtype=np.uint8).copy()
    data = torch.from_numpy(text).long()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        model.train()
        for _ in range(2):
            starts = torch.randint(0, len(data) - 34, (2,))
            batch = torch.stack([data[start : start + 33] for start in starts])
            loss = model(batch) / 2
            loss.backward()
        losses.append(2 * loss.item())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.7 * losses[0]
    model.eval()
    with torch.no_grad():
        assert model(data[None, :33]).isfinite()
    prompt = data[:32] if package == "h_transformer_1d" else data[None, :32]
    sample = model.generate(prompt, 6)
    assert sample.shape[-1] == 6
    assert sample.ndim == prompt.ndim


def test_clip_and_dalle():
    """CLIP trained, a DALLE with every kind of attention trained and drawing, reranked, guided."""
    from foveal.compat.dalle_pytorch import CLIP, DALLE, DiscreteVAE

    clip = CLIP(
        dim_text=16,
        dim_image=16,
        dim_latent=16,
        num_text_tokens=50,
        text_enc_depth=1,
        text_seq_len=8,
        text_heads=2,
        num_visual_tokens=20,
        visual_enc_depth=1,
        visual_image_size=16,
        visual_patch_size=8,
        visual_heads=2,
    )
    text, images = torch.randint(0, 50, (4, 8)), torch.randn(4, 3, 16, 16)
    clip(text, images, text_mask=torch.ones_like(text).bool(), return_loss=True).backward()
    vae = DiscreteVAE(**VAE, num_resnet_blocks=1, temperature=0.9, straight_through=False)
    vae(images, return_loss=True).backward()
    dalle = DALLE(
        dim=16,
        vae=vae,
        num_text_tokens=50,
        text_seq_len=8,
        depth=5,
        heads=2,
        dim_head=8,
        reversible=True,
        attn_types=("full", "axial_row", "axial_col", "conv_like", "sparse"),
        attn_dropout=0.1,
        ff_dropout=0.1,
    )
    dalle(text, images, return_loss=True, null_cond_prob=0.2).backward()
    drawn, scores = dalle.generate_images(text, clip=clip)
    assert drawn.shape == (4, 3, 16, 16)
    assert scores.shape == (4,)
    primed = dalle.generate_images(text, img=images, num_init_img_tokens=8, cond_scale=3.0)
    assert primed.shape == drawn.shape


def test_train_vae_then_dalle_then_generate(tmp_path):
    """The three scripts: vae.pt of a folder, dalle.pt of its captions, pictures of a text."""
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("tokenizers")
    import foveal
    from foveal.compat.dalle_pytorch import DALLE, DiscreteVAE
    from foveal.compat.dalle_pytorch.loader import TextImageDataset
    from foveal.compat.dalle_pytorch.tokenizer import HugTokenizer
    from foveal.data import CaptionTokenizer

    for name, colour in (("red", (200, 0, 0)), ("green", (0, 200, 0)), ("blue", (0, 0, 200))):
        image.new("RGB", (20, 24), colour).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"a {name} square\n\n{name}\n")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "broken.txt").write_text("what is not there")
    (tmp_path / "silent.txt").write_text("\n")
    image.new("RGB", (9, 9)).save(tmp_path / "silent.png")
    CaptionTokenizer.train(["a red square", "a blue square"], 300).save(tmp_path / "bpe.json")
    tokenizer = HugTokenizer(tmp_path / "bpe.json")
    torch.manual_seed(0)

    vae = DiscreteVAE(**VAE)
    data = TextImageDataset(tmp_path, text_len=8, image_size=16, tokenizer=tokenizer)
    assert len(data) == 5
    loader = torch.utils.data.DataLoader(data, batch_size=5)
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    for _, images in loader:
        assert images.shape == (5, 3, 16, 16)
        loss, _ = vae(images, return_loss=True, return_recons=True, temp=0.9)
        loss.backward()
        optimizer.step()
    torch.save({"hparams": VAE, "weights": vae.state_dict()}, tmp_path / "vae.pt")

    loaded = torch.load(tmp_path / "vae.pt", weights_only=True)
    vae = DiscreteVAE(**loaded["hparams"])
    vae.load_state_dict(loaded["weights"])
    params = {"num_text_tokens": tokenizer.vocab_size, "text_seq_len": 8, "dim": 16, "depth": 2}
    params |= {"heads": 2, "dim_head": 8, "attn_types": ("full", "axial_row")}
    dalle = DALLE(vae=vae, **params)
    optimizer = torch.optim.Adam([p for p in dalle.parameters() if p.requires_grad], lr=1e-3)
    for text, images in loader:
        dalle(text, images, return_loss=True).backward()
        torch.nn.utils.clip_grad_norm_(dalle.parameters(), 0.5)
        optimizer.step()
    saved = {"hparams": params, "vae_params": VAE, "weights": dalle.state_dict()}
    torch.save({**saved, "epoch": 0, "version": "1.6.6"}, tmp_path / "dalle.pt")

    dalle = DALLE(vae=DiscreteVAE(**VAE), **params)
    dalle.load_state_dict(torch.load(tmp_path / "dalle.pt", weights_only=True)["weights"])
    text = tokenizer.tokenize(["a red square"], dalle.text_seq_len)
    drawn = dalle.generate_images(text.expand(2, -1), filter_thres=0.9)
    assert drawn.shape == (2, 3, 16, 16)
    completed, texts = dalle.generate_texts(tokenizer, "a red")
    assert completed.shape == (1, 8)
    assert texts[0].startswith("a red")
    again = foveal.load_upstream(tmp_path / "dalle.pt")
    with torch.no_grad():
        torch.testing.assert_close(again(text), dalle.eval()(text))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="no picture with"):
        TextImageDataset(empty)


def test_embeddings_start_as_the_packages():
    """Token embeddings are drawn from N(0, 1) in h-transformer-1d, Hourglass and DALL-E."""
    from foveal.compat.dalle_pytorch import DALLE, DiscreteVAE
    from foveal.compat.h_transformer_1d import HTransformer1D
    from foveal.compat.hourglass_transformer_pytorch import HourglassTransformerLM

    sizes = {"num_tokens": 500, "dim": 16, "depth": 1, "heads": 1, "dim_head": 8}
    models = [
        HTransformer1D(**sizes, max_seq_len=256, block_size=128).token_emb,
        HourglassTransformerLM(**sizes, max_seq_len=300).token_emb,
        HourglassTransformerLM(**sizes, max_seq_len=300).pos_emb,
        DALLE(dim=16, vae=DiscreteVAE(**VAE), depth=1, heads=1, num_text_tokens=500).text_emb,
    ]
    for embedding in models:
        assert embedding.weight.std().item() == pytest.approx(1.0, abs=0.05)


def test_forward_by_keyword():
    """x= is the name of what the language models read."""
    from foveal.compat.h_transformer_1d import HTransformer1D
    from foveal.compat.hourglass_transformer_pytorch import HourglassTransformerLM, Transformer

    sizes = {"num_tokens": 9, "dim": 8, "depth": 1, "heads": 1, "dim_head": 8, "max_seq_len": 32}
    tokens = torch.randint(0, 9, (1, 32))
    for model in (HTransformer1D(**sizes, block_size=8), HourglassTransformerLM(**sizes)):
        assert torch.equal(model(x=tokens), model(tokens))
    ended = Transformer(8, depth=1, norm_out=True, heads=1, dim_head=8)
    out = ended(x=torch.randn(1, 4, 8) * 9)
    torch.testing.assert_close(out, F.layer_norm(out, (8,)), atol=1e-3, rtol=1e-3)
