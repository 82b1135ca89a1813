"""HAttention1D, its causal and cross forms, shifted tokens, reversible sequences."""

import pytest
import torch
from torch import nn

from foveal import testing
from foveal.layers import (
    CausalHAttention1D,
    HAttention1D,
    HCrossAttention1D,
    PreShiftTokens,
    ReversibleSequence,
    Rotary,
)
from foveal.layers.hierarchical import shift_tokens

SIZES = {"heads": 2, "dim_head": 4, "block_size": 4}


def test_weights_of_the_public_layers(peer):
    """State dicts of h-transformer-1d load, buffers and positions included; any length runs."""
    theirs = peer("h_transformer_1d.h_transformer_1d")
    rotary = peer("rotary_embedding_torch").RotaryEmbedding(4)
    layers = [
        (theirs.HAttention1D(8, pos_emb=rotary, **SIZES), HAttention1D),
        (
            theirs.CausalHAttention1D(8, max_seq_len=64, pos_emb=rotary, **SIZES),
            CausalHAttention1D,
        ),
        (theirs.HAttention1D(8, **SIZES), HAttention1D),
    ]
    for layer, cls in layers:
        ours = cls(8, pos_emb=layer.pos_emb, **SIZES)
        ours.load_state_dict(layer.state_dict())
        assert torch.equal(ours.to_qkv.weight, layer.to_qkv.weight)
        for n in (1, 3, 8, 77):
            assert ours(torch.randn(1, n, 8)).shape == (1, n, 8)


def test_positions_turn_as_in_the_package(peer):
    """Scores of queries and keys are those of the package's rotary embedding."""
    package = peer("rotary_embedding_torch")
    rotary = package.RotaryEmbedding(8)
    layer = HAttention1D(16, heads=1, dim_head=8, pos_emb=rotary)
    q, k = torch.randn(2, 1, 20, 1, 8)
    ours = layer.rotary(q)[:, :, 0] @ layer.rotary(k)[:, :, 0].mT
    freqs = rotary(torch.arange(20))[None]
    turned = [package.apply_rotary_emb(freqs, x[:, :, 0]) for x in (q, k)]
    torch.testing.assert_close(ours, turned[0] @ turned[1].mT, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="pos_emb"):
        HAttention1D(16, heads=1, dim_head=8, pos_emb=nn.Linear(2, 2))
    assert isinstance(HAttention1D(16, dim_head=8, pos_emb=Rotary(8)).rotary, Rotary)


@pytest.mark.parametrize("options", [{}, {"neighbors": "sibling"}, {"queries": "coarse"}], ids=str)
def test_causal_layer_reaches_all_of_the_past(options):
    """Every earlier token influences each output, and no later one does."""
    layer = CausalHAttention1D(8, max_seq_len=64, pos_emb=True, **SIZES, **options).double()
    testing.assert_causal(layer, 40)
    found = testing.reach(lambda x: layer(x), 40, dim=8)
    assert torch.equal(found, torch.ones(40, 40, dtype=torch.bool).tril())


def test_encoder_layer_leaves_padding_out():
    """Real tokens reach one another; what is masked on either side reaches no real one."""
    layer = HAttention1D(8, pos_emb=True, relative_bias=True, **SIZES).double()
    mask = torch.ones(1, 40, dtype=torch.bool)
    mask[:, :3], mask[:, 30:] = False, False
    found = testing.reach(lambda x: layer(x, mask), 40, dim=8)
    assert found[3:30, 3:30].all()
    assert not found[3:30, :3].any()
    assert not found[3:30, 30:].any()


def test_identical_tokens_with_positions():
    """Positions never touch values: identical tokens keep identical outputs."""
    layer = CausalHAttention1D(8, pos_emb=True, **SIZES).double()
    out = layer(torch.randn(1, 1, 8).double().expand(1, 50, 8))
    torch.testing.assert_close(out, out[:, :1].expand_as(out), rtol=0, atol=1e-12)


@pytest.mark.parametrize("relative_bias", [True, "shared"])
def test_every_parameter_learns(relative_bias):
    """No dead weights, tables of relative positions included."""
    layers = [
        CausalHAttention1D(8, relative_bias=relative_bias, **SIZES),
        HCrossAttention1D(8, relative_bias=relative_bias, **SIZES),
    ]
    x = torch.randn(2, 60, 8)
    layers[0](x).square().sum().backward()
    layers[1](x, torch.randn(2, 50, 8)).square().sum().backward()
    for layer in layers:
        for name, p in layer.named_parameters():
            assert p.grad is not None, name
            assert p.grad.any(), name
        assert layer.rel_bias.shape == (15, 1 if relative_bias == "shared" else 2)
    with pytest.raises(ValueError, match="relative_bias"):
        HAttention1D(8, relative_bias="single", **SIZES)


def test_cross_attention_one_by_one():
    """Steps over a remembered context are the rows of the forward pass; the future is unseen."""
    layer = HCrossAttention1D(8, pos_emb=True, relative_bias=True, **SIZES).double()
    x, context = torch.randn(2, 30, 8).double(), torch.randn(2, 45, 8).double()
    mask = torch.rand(2, 45) < 0.8
    full = layer(x, context, mask)
    memory = layer.remember(context, mask, max_queries=30)
    rows = [layer.step(x[:, i : i + 1], memory, i) for i in range(30)]
    torch.testing.assert_close(torch.cat(rows, 1), full, rtol=0, atol=1e-10)
    found = testing.reach(lambda t: layer(t, context[:1], mask[:1]), 30, dim=8)
    assert torch.equal(found, torch.eye(30, dtype=torch.bool))


# -- shifting tokens ----------------------------------------------------------------------------


def test_shift_tokens_both_ways():
    """Parts move to later and to earlier places, zeros come in, the rest stays."""
    x = torch.arange(1.0, 5.0)[None, :, None].expand(1, 4, 7)
    out = shift_tokens(x, (-1, 0, 1))[0]
    assert out[:, 0].tolist() == [2, 3, 4, 0]
    assert out[:, 2].tolist() == [1, 2, 3, 4]
    assert out[:, 4].tolist() == [0, 1, 2, 3]
    assert out[:, 6].tolist() == [1, 2, 3, 4]
    assert shift_tokens(x[:, :1], (3, -2))[0, 0].tolist() == [0, 0, 0, 0, 0, 0, 1]


def test_pre_shift_tokens():
    """The layer sees shifted tokens and its keywords; padding hands nothing on."""
    layer = PreShiftTokens((0, 1), HAttention1D(8, **SIZES)).double()
    mask = torch.ones(1, 12, dtype=torch.bool)
    mask[:, 5] = False
    found = testing.reach(lambda x: layer(x, mask=mask), 12, dim=8)
    assert not found[mask[0]][:, 5].any()
    assert PreShiftTokens((0, 1), nn.Identity())(torch.ones(1, 3, 4)).sum() == 10
    with pytest.raises(ValueError, match="at least one shift"):
        PreShiftTokens((), nn.Identity())


# -- reversible ---------------------------------------------------------------------------------


def branches(depth, dropout=0.0):
    torch.manual_seed(0)
    return [
        [
            nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.Dropout(dropout), nn.Tanh())
            for _ in "fg"
        ]
        for _ in range(depth)
    ]


def plain(blocks, x):
    first = second = x
    for f, g in blocks:
        first = first + f(second)
        second = second + g(first)
    return first + second


def gradients(run, x, modules):
    x = x.detach().requires_grad_()
    out = run(x)
    (out * torch.arange(out.numel()).view_as(out)).sum().backward()
    grads = [x.grad] + [p.grad for p in modules.parameters()]
    modules.zero_grad()
    return out, grads


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_reversible_equals_plain(dropout):
    """Outputs and gradients are those of the same layers kept in memory, dropout included."""
    blocks = branches(3, dropout)
    model = ReversibleSequence(blocks).double()
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    torch.manual_seed(1)
    out, grads = gradients(model, x, model)
    torch.manual_seed(1)
    want, wanted = gradients(lambda t: plain(blocks, t), x, model)
    torch.testing.assert_close(out, want, rtol=0, atol=0)
    for a, b in zip(grads, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_reversible_beside_the_package(peer):
    """The package's sequence gives the same sum of streams."""
    theirs = peer("h_transformer_1d.reversible").ReversibleSequence(branches(2))
    ours = ReversibleSequence(branches(2))
    x = torch.randn(1, 4, 6)
    torch.testing.assert_close(ours(x), theirs(x))


class Masked(nn.Linear):
    """A branch that takes a keyword."""

    def forward(self, x, mask=None):
        return super().forward(x) if mask is None else super().forward(x * mask)


def test_routes_and_layer_dropout():
    """Keywords go where they are sent; dropping layers keeps at least one."""
    model = ReversibleSequence(
        [[Masked(6, 6), nn.Linear(6, 6)]] * 2, args_route={"mask": [(True, False)] * 2}
    )
    x = torch.randn(1, 3, 6)
    assert not torch.equal(model(x, mask=torch.zeros(1, 3, 1)), model(x))
    dropping = ReversibleSequence(branches(4), layer_dropout=0.999)
    first = dropping.blocks[0]
    torch.manual_seed(3)
    torch.testing.assert_close(dropping(x), plain([(first.f, first.g)], x))
    with pytest.raises(ValueError, match="args_route"):
        ReversibleSequence(branches(2), args_route={"mask": [(True, False)]})


def test_shared_layers_add_up():
    """A layer used twice gets the sum of both gradients."""
    (pair,) = branches(1)
    model = ReversibleSequence([pair, pair]).double()
    x = torch.randn(1, 4, 6, dtype=torch.float64)
    _, grads = gradients(model, x, model)
    _, wanted = gradients(lambda t: plain([pair, pair], t), x, model)
    for a, b in zip(grads, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)
