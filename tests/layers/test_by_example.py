"""What is dropped belongs to the example: any cut of a batch, and recomputation, drop the same."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import foveal
from foveal import models as M
from foveal import patterns as P
from foveal.common import by_example
from foveal.common.hashing import row_words
from foveal.layers import DropPath, HaloAttention, ReversibleSequence, SeparableAttention, Stack
from foveal.layers.dropout import Dropout
from foveal.layers.map_attention import MapAttention
from foveal.models.vae.vq import _choose

CUTS = {"8 x 1": [1] * 8, "4 x 2": [2] * 4, "2 x 4": [4, 4], "uneven": [3, 5]}


def in_parts(function, x, sizes, seed=1, step=2):
    """Results for parts of a batch, each computed by itself, whatever torch's generator holds."""
    found, first = [], 0
    for size in sizes:
        torch.manual_seed(first)
        torch.rand(first)
        with by_example.rows_of_step(seed, step, np.arange(first, first + size)):
            found.append(function(x[first : first + size]))
        first += size
    return torch.cat(found)


def attention(pattern, **options):
    def act(x):
        x = x.flatten(2).unflatten(2, (2, 6)).transpose(1, 2)
        return foveal.attend(x, x, x, pattern, dropout_p=0.3, **options)

    return act


def maps(layer):
    return lambda x: layer.double()(x.permute(0, 2, 1).unflatten(2, (4, 4)))


KINDS = {
    "twice": lambda: nn.Sequential(Dropout(0.2), Dropout(0.4)),
    "paths": lambda: nn.Sequential(DropPath(0.5), DropPath(0.5)),
    "rows of an example": lambda: lambda x: Dropout(0.5)(x.flatten(0, 1)).unflatten(0, (-1, 16)),
    "window": lambda: attention(P.SlidingWindow(5)),
    "plain": lambda: attention(P.Full(), impl="dense"),
    "tiles": lambda: attention(P.SlidingWindow(5), impl="tiled"),
    "reference": lambda: attention(P.Full(causal=False), impl="reference"),
    "pooled": lambda: attention(P.Pyramid(2)),
    "a bias, and keys that are hidden": lambda: (
        lambda x: foveal.attend(
            *(x[:, None],) * 3,
            P.SlidingWindow(7),
            bias=x[:, None, :, :1] * torch.ones(16),
            key_mask=x[:, :, 0] < 1,
            dropout_p=0.3,
        )
    ),
    "halo": lambda: maps(HaloAttention(12, block_size=2, halo_size=1, dropout=0.3)),
    "map": lambda: maps(MapAttention(12, (4, 4), heads=2, dim_head=6, dropout=0.3)),
    "separable": lambda: lambda x: SEPARABLE(x.unflatten(1, (4, 4))),
    "numbers": lambda: lambda x: by_example.uniform(x, 3, 2),
}
SEPARABLE = SeparableAttention(12, heads=2, window_size=2, dropout=0.3, proj_dropout=0.2).double()


@pytest.mark.parametrize("name", KINDS)
def test_any_cut_drops_the_same(name):
    """To the rounding of products; another step, seed or example drops otherwise."""
    torch.manual_seed(0)
    act = KINDS[name]()
    act = act.double() if isinstance(act, nn.Module) else act
    x = torch.rand(8, 16, 12, dtype=torch.float64)
    whole = in_parts(act, x, [8])
    for sizes in CUTS.values():
        torch.testing.assert_close(in_parts(act, x, sizes), whole, rtol=1e-12, atol=1e-12)
    for seed, step in ((1, 3), (2, 2)):
        assert not torch.allclose(in_parts(act, x, [8], seed, step), whole)
    same = in_parts(act, x[:1].expand(8, -1, -1), [8])
    assert len({row.numpy().tobytes() for row in same.detach()}) > 1


MODELS = {
    "transformer": lambda: M.TransformerLM(
        num_tokens=9, dim=12, depth=2, heads=2, max_seq_len=16, dropout=0.2
    ),
    "hourglass": lambda: M.HourglassTransformerLM(
        num_tokens=9,
        dim=12,
        max_seq_len=16,
        shorten_factor=2,
        depth=(1, 1, 1),
        heads=2,
        dropout=0.2,
        factor_choices=(2, 4),
    ),
    "hierarchical": lambda: M.HTransformer1D(
        num_tokens=9, dim=12, depth=2, heads=2, max_seq_len=16, dropout=0.2, reversible=True
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_of_sequences(name):
    """Also where a stage draws how much it shortens, and where branches are reversible."""
    torch.manual_seed(0)
    model = MODELS[name]().double().train()
    x = torch.randint(9, (8, 16))
    whole = in_parts(model, x, [8])
    assert not torch.allclose(whole, model.eval()(x))
    model.train()
    for sizes in CUTS.values():
        torch.testing.assert_close(in_parts(model, x, sizes), whole, rtol=1e-9, atol=1e-9)


def test_models_of_pictures():
    """Features, paths and weights are dropped, and noise is added, by picture."""
    torch.manual_seed(0)
    net = M.HaloNet(
        dims=(8, 8),
        depths=(1, 2),
        heads=(2, 2),
        strides=(1, 2),
        stem_dim=4,
        block_size=4,
        halo_size=1,
        stem_kernel=3,
        num_classes=3,
        drop_path_rate=0.5,
        drop_rate=0.3,
        attn_drop_rate=0.3,
    ).double()
    for layer in net.modules():
        if isinstance(layer, _BatchNorm):
            layer.eval()
    vae = M.DiscreteVAE(image_size=8, num_tokens=7, codebook_dim=5, num_layers=1, hidden_dim=4)
    x = torch.rand(8, 3, 16, 16, dtype=torch.float64)
    for act, seen in ((net, x), (vae.double(), x[..., :8, :8])):
        whole = in_parts(act, seen, [8])
        assert not torch.allclose(whole, in_parts(act, seen, [8], step=3))
        for sizes in CUTS.values():
            torch.testing.assert_close(in_parts(act, seen, sizes), whole, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["checkpointing", "reversible", "checkpoint"])
def test_what_is_computed_again_drops_the_same(kind):
    """Gradients with recomputation are those without, by finite difference of the same loss."""
    torch.manual_seed(0)
    mix = nn.Sequential(nn.Linear(6, 6), Dropout(0.4), nn.Tanh(), Dropout(0.3)).double()
    other = nn.Sequential(nn.Linear(6, 6), Dropout(0.4)).double()
    if kind == "reversible":
        act = ReversibleSequence([(mix, other), (other, mix)])
    elif kind == "checkpoint":
        act = lambda x: torch.utils.checkpoint.checkpoint(  # noqa: E731
            lambda x: other(mix(x)) + mix(x), x, use_reentrant=False
        )
    else:
        act = Stack(6, 2, [P.SlidingWindow(3)], heads=2, dropout=0.3).double()
        act.checkpointing = True
    x = torch.rand(4, 5, 6, dtype=torch.float64, requires_grad=True)
    move = torch.randn_like(x)

    def loss(x):
        torch.manual_seed(5)
        with by_example.rows_of_step(0, 0, np.arange(4)):
            found = act(x).square().sum()
            grad = torch.autograd.grad(found, x)[0]
        return found, grad

    step = 1e-6
    slope = (loss(x + step * move)[0] - loss(x - step * move)[0]) / (2 * step)
    torch.testing.assert_close((loss(x)[1] * move).sum(), slope, rtol=1e-6, atol=1e-6)


def test_layers_and_entries_that_all_share():
    """Which layers are left out, and which features a codebook takes, is one answer for all."""
    layers = ReversibleSequence(
        [(nn.Linear(12, 12), nn.Linear(12, 12)) for _ in range(6)], layer_dropout=0.5
    ).double()
    x = torch.rand(8, 16, 12, dtype=torch.float64)
    whole = in_parts(layers, x, [8])
    torch.testing.assert_close(in_parts(layers, x, [2] * 4), whole)
    with by_example.rows_of_step(0, 0, np.arange(8)):
        chosen = _choose(x.flatten(0, 1), 50)
    assert len(chosen.unique(dim=0)) > 25


def test_shares_are_right_and_rows_apart():
    """The share that is dropped, its scale, each bit of a word; rows are not correlated."""
    x = torch.ones(64, 5001)
    for p in (0.1, 0.5, 0.9):
        found = in_parts(Dropout(p), x, [64])
        assert float((found == 0).float().mean()) == pytest.approx(p, abs=0.005)
        assert float(found.mean()) == pytest.approx(1, abs=0.02)
        centred = (found == 0).double() - p
        assert torch.corrcoef(centred).triu(1).abs().max() < 0.08
        assert torch.corrcoef(centred[:, :40].T).triu(1).abs().max() < 0.65
    words = row_words(torch.randint(1 << 62, (50,)), 2000)
    bits = torch.stack([(words >> bit) & 1 for bit in range(32)]).double().mean((1, 2))
    assert (bits - 0.5).abs().max() < 0.01
    assert torch.equal(in_parts(Dropout(0.0), x, [64]), x)


def test_without_a_training_it_is_torchs():
    """The same numbers as torch's dropout, in training mode and not, and after a training too."""
    x = torch.rand(3, 4)
    with pytest.raises(ValueError, match="q"), by_example.rows_of_step(0, 0, np.arange(3)):
        foveal.attend(x[:, None, None], x[:, None], x[:, None], P.Full(), dropout_p=0.5)
    assert not by_example.is_active()
    for training in (True, False):
        torch.manual_seed(0)
        wanted = nn.Dropout(0.5).train(training)(x)
        torch.manual_seed(0)
        assert torch.equal(Dropout(0.5).train(training)(x), wanted)
    torch.manual_seed(0)
    wanted = nn.functional.dropout(x, 0.5)
    torch.manual_seed(0)
    with by_example.rows_of_step(0, 0, np.arange(2)):  # three rows are not those of two examples
        assert torch.equal(Dropout(0.5)(x), wanted)
