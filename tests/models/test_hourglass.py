"""Hourglass: no leak and full reach at any length, padding that changes nothing, gradients."""

import pytest
import torch

from foveal import patterns as P
from foveal.models import HourglassConfig, HourglassTransformer, HourglassTransformerLM
from foveal.models.hourglass.resampling import LinearShorten, NaiveShorten, gather_groups

HIERARCHIES = [
    ((1, 1, 1), 2),
    ((1, 1, 1), 3),
    ((1, 1, 1), 7),
    ((1, (1, 1, 1), 1), (2, 3)),
    ((1, (1, (1, 1, 1), 1), 1), 2),
]
RESAMPLINGS = [("naive", False), ("linear", False), ("naive", True), ("linear", True)]


def stage(depth, factor, sample="naive", attention=False, causal=True, pattern=None):
    torch.manual_seed(0)
    module = HourglassTransformer(
        dim=8,
        heads=2,
        dim_head=4,
        depth=depth,
        shorten_factor=factor,
        updown_sample_type=sample,
        attn_resampling=attention,
        causal=causal,
        pattern=pattern,
    )
    return module.double()


def influence(module, length, mask=None):
    """(outputs, inputs) bool: which input tokens move which output tokens."""
    x = torch.randn(1, length, 8, dtype=torch.float64, requires_grad=True)
    y = module(x, mask)
    weight = torch.randn(8, dtype=torch.float64)
    rows = [
        torch.autograd.grad((y[0, i] * weight).sum(), x, retain_graph=True)[0][0]
        for i in range(length)
    ]
    return torch.stack(rows).abs().amax(-1) > 0


@pytest.mark.parametrize(("depth", "factor"), HIERARCHIES, ids=str)
@pytest.mark.parametrize(("sample", "attention"), RESAMPLINGS, ids=str)
def test_causal_reach_is_exactly_the_past(depth, factor, sample, attention):
    """Every output depends on all earlier inputs and on no later one, also at primes and 1."""
    module = stage(depth, factor, sample, attention)
    for length in (1, 2, 5, 13, 24):
        expected = torch.ones(length, length).tril().bool()
        assert torch.equal(influence(module, length), expected), length


@pytest.mark.parametrize(("depth", "factor"), HIERARCHIES[:4], ids=str)
@pytest.mark.parametrize(("sample", "attention"), RESAMPLINGS, ids=str)
def test_bidirectional_reach_is_everything(depth, factor, sample, attention):
    """Without causality every output depends on every input."""
    module = stage(depth, factor, sample, attention, causal=False)
    for length in (1, 2, 5, 13):
        assert influence(module, length).all(), length


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_coarse_path_alone_carries_the_past(factor):
    """With outer layers that see one token, the past arrives through the coarse level, in time.

    Fine token i sees what coarse token i // k pooled: everything up to (i // k) k, and itself.
    """
    module = stage((1, 1, 1), factor, pattern=[P.SlidingWindow(1), P.Full(causal=True)])
    length = 13
    i, j = torch.arange(length)[:, None], torch.arange(length)[None]
    expected = (j <= i // factor * factor) | (i == j)
    assert torch.equal(influence(module, length), expected)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize(("sample", "attention"), RESAMPLINGS, ids=str)
def test_padding_does_not_leak(causal, side, sample, attention):
    """What the mask hides moves no real output, even when it is not finite; reach stays whole."""
    module = stage((1, (1, 1, 1), 1), (3, 2), sample, attention, causal)
    length = 17
    mask = torch.ones(1, length, dtype=torch.bool)
    if side != "right":
        mask[:, :5] = False
    if side != "left":
        mask[:, -4:] = False
    moved = influence(module, length, mask)[mask[0]]
    assert not moved[:, ~mask[0]].any()
    real = moved[:, mask[0]]
    expected = torch.ones_like(real).tril() if causal else torch.ones_like(real)
    assert torch.equal(real, expected)


@pytest.mark.parametrize(("sample", "attention"), RESAMPLINGS, ids=str)
@pytest.mark.parametrize("causal", [True, False])
def test_padding_on_the_right_changes_nothing(causal, sample, attention):
    """Real tokens come out as they would without the padding: no dilution of pooled tokens."""
    module = stage((1, (1, 1, 1), 1), (3, 2), sample, attention, causal)
    x = torch.randn(1, 17, 8, dtype=torch.float64)
    for length in (1, 4, 11):
        mask = torch.arange(17)[None] < length
        torch.testing.assert_close(module(x, mask)[:, :length], module(x[:, :length]))


def test_left_padding_by_whole_groups_changes_nothing():
    """A shift by a multiple of the factor keeps the groups, so the result stays the same."""
    module = stage((1, 1, 1), 3, causal=False)
    x = torch.randn(1, 17, 8, dtype=torch.float64)
    mask = torch.arange(17)[None] >= 6
    torch.testing.assert_close(module(x, mask)[:, 6:], module(x[:, 6:]))


def test_pooling_counts_real_tokens_only():
    """The mean of ones is one, at the front of a causal sequence and beside padding."""
    x = torch.ones(1, 7, 2)
    for causal in (True, False):
        groups = gather_groups(x, None, 4, causal)
        assert torch.equal(NaiveShorten()(groups), torch.ones(1, 2, 2))
    mask = torch.tensor([[True, True, False, False, True, False, False]])
    groups = gather_groups(x.masked_fill(~mask[..., None], torch.nan), mask, 4, False)
    assert torch.equal(NaiveShorten()(groups), torch.ones(1, 2, 2))
    assert LinearShorten(2, 4)(groups).isfinite().all()


def test_groups_are_shifted_by_factor_minus_one():
    """Coarse token c holds the fine tokens c k - k + 1 ... c k."""
    x = torch.arange(7.0)[None, :, None]
    groups = gather_groups(x, None, 3, causal=True)
    assert groups.x[0, ..., 0].tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
    assert groups.real[0, 0].tolist() == [False, False, True]


@pytest.mark.parametrize(("sample", "attention"), RESAMPLINGS, ids=str)
def test_every_parameter_gets_a_gradient(sample, attention):
    """No part of the hierarchy is dead."""
    model = HourglassTransformerLM(
        num_tokens=20,
        dim=8,
        heads=2,
        dim_head=4,
        depth=(1, (1, 2, 1), 1),
        shorten_factor=(2, 3),
        updown_sample_type=sample,
        attn_resampling=attention,
    )
    tokens = torch.randint(0, 20, (2, 23))
    model(tokens).square().sum().backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


def test_stages_take_patterns_of_their_own():
    """Outer layers local, the valley dense: an entry per stage, the last one going on."""
    pattern = [P.SlidingWindow(4), [P.SlidingWindow(2), P.Full(causal=True)]]
    config = HourglassConfig(depth=(1, (1, 1, 1), 1), pattern=pattern)
    assert config.stage_patterns(0) == (P.SlidingWindow(4),)
    assert config.stage_patterns(1) == config.stage_patterns(2) == tuple(pattern[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": (1, 2)}, "depth must be an int or"),
        ({"depth": (1, (1, 2, "x"), 1)}, "depth must be"),
        ({"depth": (-1, 2, 1)}, "at least 0"),
        ({"shorten_factor": (2, 3)}, "one int for each of the 1 stages"),
        ({"shorten_factor": 0}, "shorten_factor must be at least 1"),
        ({"updown_sample_type": "cubic"}, "updown_sample_type must be 'naive'"),
        ({"pattern": P.Full()}, "causal"),
        ({"shorten_facter": 2}, "did you mean 'shorten_factor'"),
        ({"heads": 3, "dim_head": None}, "heads must divide dim"),
        ({"dropout": 1.0}, "dropout"),
    ],
    ids=str,
)
def test_nonsense_options(options, message):
    """Each impossible hierarchy is refused by name and value."""
    with pytest.raises(ValueError, match=message):
        HourglassTransformerLM(**options)


def test_a_plain_depth_is_no_hourglass():
    """The stage module needs nesting; the language model takes a plain depth as a transformer."""
    with pytest.raises(ValueError, match="got depth=3"):
        HourglassTransformer(dim=8, depth=3)
    model = HourglassTransformerLM(dim=8, depth=3, shorten_factor=4)
    assert len(model.transformer.layers) == 3
