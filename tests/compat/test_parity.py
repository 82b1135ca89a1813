"""The import swap computes what a package computes, with its weights: outputs and gradients."""

import importlib

import pytest
import torch
from parity import CLOSE, check, noise, padding, pair

H = {"num_tokens": 30, "dim": 16, "depth": 2, "heads": 2, "dim_head": 8}
HOUR = {"num_tokens": 30, "dim": 16, "max_seq_len": 24, "heads": 2, "dim_head": 8}


def ids(*shape):
    return torch.randint(0, 30, shape, generator=torch.Generator().manual_seed(1))


# -- halonet ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("block", "halo", "size"), [(4, 2, 8), (2, 1, 6), (8, 3, 16)])
def test_halonet(peer, block, halo, size):
    """HaloAttention and its position embedding, at three sizes."""
    options = {"dim": 12, "block_size": block, "halo_size": halo, "dim_head": 8, "heads": 2}
    theirs, ours = pair(peer, "halonet_pytorch.halonet_pytorch", "HaloAttention", (), options)
    check(theirs, ours, noise(2, 12, size, size))
    theirs, ours = pair(peer, "halonet_pytorch.halonet_pytorch", "RelPosEmb", (block, 6, 8))
    check(theirs, ours, noise(3, block * block, 8)) if block <= 6 else None


# -- h-transformer-1d ---------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"shift_tokens": True}, {"reversible": True}], ids=["plain", "shift", "rev"]
)
def test_h_transformer(peer, causal, options):
    """The model: encoder and decoder, shifted, reversible; whole and padded sequences, masks."""
    options = {**H, "max_seq_len": 64, "block_size": 4, "causal": causal, **options}
    theirs, ours = pair(peer, "h_transformer_1d.h_transformer_1d", "HTransformer1D", (), options)
    # without dropout the mode changes nothing, but the package has no backward pass in evaluation
    training = "reversible" in options
    theirs.train(training), ours.train(training)
    for length in (64, 37, 20):
        check(theirs, ours, ids(2, length))
        check(theirs, ours, ids(2, length), mask=padding(2, length, length - 3))


@pytest.mark.parametrize("positions", [None, 8, 4], ids=["none", "rotary", "half"])
@pytest.mark.parametrize("name", ["HAttention1D", "CausalHAttention1D"])
def test_h_attention(peer, name, positions):
    """The layers alone, without positions and with those of rotary-embedding-torch."""
    rotary = pytest.importorskip("rotary_embedding_torch").RotaryEmbedding
    options = {"heads": 2, "dim_head": 8, "block_size": 4}
    options["pos_emb"] = None if positions is None else rotary(positions)
    if name == "CausalHAttention1D":
        options["max_seq_len"] = 32
    theirs, ours = pair(peer, "h_transformer_1d.h_transformer_1d", name, (16,), options)
    for length in (32, 27):
        check(theirs, ours, noise(2, length, 16), mask=padding(2, length, 20))


def test_h_transformer_parts(peer):
    """FeedForward, PreNorm and PreShiftTokens, features that do not divide included."""
    module = "h_transformer_1d.h_transformer_1d"
    theirs, ours = pair(peer, module, "FeedForward", (16,), {"mult": 3})
    check(theirs, ours, noise(2, 5, 16))
    own = importlib.import_module(f"foveal.compat.{module}")
    for dim, shifts in ((16, (0, 1)), (17, (-1, 0, 1)), (16, (0, 1, 2))):
        two = [m.PreShiftTokens(shifts, torch.nn.Tanh()) for m in (peer(module), own)]
        check(*two, noise(2, 5, dim))
        two = [m.PreNorm(dim, torch.nn.Tanh()) for m in (peer(module), own)]
        check(*two, noise(2, 5, dim))


@pytest.mark.parametrize("name", ["SequentialSequence", "ReversibleSequence"])
def test_sequences(peer, name):
    """Pairs of branches with routed keywords, in training mode too."""

    def made(module):
        torch.manual_seed(0)
        layers = torch.nn.ModuleList(
            torch.nn.ModuleList([torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)]) for _ in range(3)
        )
        return getattr(module, name)(layers)

    theirs = made(peer("h_transformer_1d.reversible"))
    ours = made(importlib.import_module("foveal.compat.h_transformer_1d.reversible"))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    check(theirs, ours, noise(2, 5, 8))
    assert ours.args_route == {}


def test_a_reversible_block(peer):
    """forward and backward_pass of a block: values, gradients of input and parameters."""
    results = []
    for module in (
        peer("h_transformer_1d.reversible"),
        importlib.import_module("foveal.compat.h_transformer_1d.reversible"),
    ):
        torch.manual_seed(0)
        block = module.ReversibleBlock(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)).train()
        x = noise(2, 3, 8)
        y = block(x)
        back, dx = block.backward_pass(y.clone(), noise(2, 3, 8))
        torch.testing.assert_close(back, x)
        results.append((y, dx, *(p.grad for p in block.parameters())))
    for mine, wanted in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(mine, wanted, **CLOSE)


# -- hourglass ----------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("resampling", [False, True])
@pytest.mark.parametrize(
    ("depth", "factor", "kind"),
    [((1, 1, 1), 2, "naive"), ((1, 2, 1), 4, "linear"), ((1, (1, 1, 1), 1), (2, 3), "naive")],
    ids=["one", "linear", "nested"],
)
def test_hourglass(peer, causal, resampling, depth, factor, kind):
    """The language model: every kind of level, with and without padding."""
    module = "hourglass_transformer_pytorch.hourglass_transformer_pytorch"
    options = {
        **HOUR,
        "depth": depth,
        "shorten_factor": factor,
        "attn_resampling": resampling,
        "updown_sample_type": kind,
        "causal": causal,
    }
    theirs, ours = pair(peer, module, "HourglassTransformerLM", (), options)
    check(theirs.eval(), ours.eval(), ids(2, 24))
    for real in (24, 17, 3):
        check(theirs, ours, ids(2, 24), mask=padding(2, 24, real))
        check(theirs, ours, ids(2, 24), mask=padding(2, 24, real).flip(1))


def test_hourglass_parts(peer):
    """Transformer, Attention over a context of another length, resampling, a plain model."""
    module = "hourglass_transformer_pytorch.hourglass_transformer_pytorch"
    theirs, ours = pair(peer, module, "HourglassTransformerLM", (), {**HOUR, "depth": 2})
    check(theirs, ours, ids(2, 7))
    options = {"depth": 2, "heads": 2, "dim_head": 8, "norm_out": True, "ff_mult": 2}
    theirs, ours = pair(peer, module, "Transformer", (16,), options)
    check(theirs, ours, noise(2, 7, 16), context=noise(2, 5, 16), mask=padding(2, 5, 3))
    for causal in (False, True):
        theirs, ours = pair(peer, module, "Attention", (16, 2, 8, 0.0, causal))
        for keys in (7, 9, 5):
            x, context = noise(2, 7, 16), noise(2, keys, 16)
            check(theirs, ours, x, context=context)
            check(theirs, ours, x, context=context, mask=padding(2, keys, 3))
            check(theirs, ours, x, context=context, mask=padding(2, keys, 2).flip(1))
    own = importlib.import_module(f"foveal.compat.{module}")
    for name, args in (
        ("NaiveDownsample", (3,)),
        ("NaiveUpsample", (3,)),
        ("LinearDownsample", (16, 3)),
        ("LinearUpsample", (16, 3)),
        ("FeedForward", (16, 2, 0.0)),
    ):
        theirs, ours = pair(peer, module, name, args)
        check(theirs, ours, noise(2, 6, 16))
    two = [m.PreNormResidual(16, torch.nn.Tanh()) for m in (peer(module), own)]
    check(*two, noise(2, 6, 16))


def test_hourglass_at_any_length():
    """Lengths that no factor divides, which the package cannot read: causal, and as a prefix."""
    from foveal.compat.hourglass_transformer_pytorch import HourglassTransformerLM

    torch.manual_seed(0)
    model = HourglassTransformerLM(**HOUR, depth=(1, (1, 1, 1), 1), shorten_factor=(3, 2)).eval()
    tokens = ids(2, 24)
    whole = model(tokens)
    for length in (1, 5, 13, 23):
        torch.testing.assert_close(model(tokens[:, :length]), whole[:, :length], **CLOSE)


# -- sep_vit ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [224, (224, 448)], ids=str)
def test_sep_vit(peer, size):
    """The network; window_size and dim_head are accepted and ignored, as there."""
    options = {
        "num_classes": 5,
        "dim": 16,
        "depth": (1, 1, 1, 1),
        "heads": (1, 1, 2, 2),
        "window_size": 5,
        "dim_head": 16,
    }
    theirs, ours = pair(peer, "vit_pytorch.sep_vit", "SepViT", (), options)
    size = size if isinstance(size, tuple) else (size, size)
    with torch.no_grad():
        x = noise(1, 3, *size)
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), **CLOSE)


def test_sep_vit_parts(peer):
    """Transformer, DSSA, FeedForward, PEG, patches and norm, by their positions."""
    for name, args, channels in (
        ("Transformer", (8, 2, 4, 2, 2), 8),
        ("DSSA", (8, 2, 4, 0.0, 7), 8),
        ("FeedForward", (8, 3, 0.0), 8),
        ("PEG", (8, 5), 8),
        ("OverlappingPatchEmbed", (8, 12, 4), 8),
        ("ChanLayerNorm", (8, 1e-4), 8),
    ):
        theirs, ours = pair(peer, "vit_pytorch.sep_vit", name, args)
        check(theirs, ours, noise(2, channels, 14, 14))
