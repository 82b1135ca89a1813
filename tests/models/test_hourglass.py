"""Hourglass: no leak and full reach at any length, padding that changes nothing, gradients."""

import itertools
import json

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
SHORTENINGS = ["average", "linear", "attention-average", "attention-linear"]
UPSAMPLINGS = ["repeat", "linear", "attention-repeat", "attention-linear", "attention-identity"]
RESAMPLINGS = list(itertools.product(SHORTENINGS, UPSAMPLINGS))


def in_turn(choices):
    """Every resampling, each with one of some choices: a shortening or upsampling meets all."""
    places = itertools.product(range(len(SHORTENINGS)), range(len(UPSAMPLINGS)))
    return [
        (*pair, choices[sum(at) % len(choices)])
        for pair, at in zip(RESAMPLINGS, places, strict=True)
    ]


def stage(depth, factor, down="average", up="repeat", causal=True, pattern=None, **options):
    torch.manual_seed(0)
    module = HourglassTransformer(
        dim=8,
        heads=2,
        dim_head=4,
        depth=depth,
        shorten_factor=factor,
        shortening=down,
        upsampling=up,
        causal=causal,
        pattern=pattern,
        **options,
    )
    return module.double()


def influence(module, length, mask=None):
    """(outputs, inputs) bool: which input tokens move which output tokens.

    A batch of the same sequence, of which the i-th is asked for its i-th output.
    """
    x = torch.randn(1, length, 8, dtype=torch.float64).repeat(length, 1, 1).requires_grad_()
    y = module(x, None if mask is None else mask.expand(length, -1))
    weight = torch.randn(8, dtype=torch.float64)
    asked = (y.diagonal(dim1=0, dim2=1).mT * weight).sum()
    return torch.autograd.grad(asked, x)[0].abs().amax(-1) > 0


@pytest.mark.parametrize(("depth", "factor"), HIERARCHIES, ids=str)
@pytest.mark.parametrize(("down", "up"), RESAMPLINGS, ids=str)
def test_causal_reach_is_exactly_the_past(depth, factor, down, up):
    """Every output depends on all earlier inputs and on no later one, also at primes and 1.

    The longest holds two whole groups and a part of one, at every level.
    """
    module = stage(depth, factor, down, up)
    for length in (1, 2, 5, 18 if factor == 7 else 13):
        expected = torch.ones(length, length).tril().bool()
        assert torch.equal(influence(module, length), expected), length


@pytest.mark.parametrize(("down", "up", "hierarchy"), in_turn(HIERARCHIES[:4]), ids=str)
def test_bidirectional_reach_is_everything(down, up, hierarchy):
    """Without causality every output depends on every input."""
    module = stage(*hierarchy, down, up, causal=False)
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
@pytest.mark.parametrize(
    ("down", "up", "side"),
    [*in_turn(["left", "right"]), *((down, up, "both") for down, up in RESAMPLINGS)],
    ids=str,
)
def test_padding_does_not_leak(causal, side, down, up):
    """What the mask hides moves no real output, even when it is not finite; reach stays whole."""
    module = stage((1, (1, 1, 1), 1), (3, 2), down, up, causal)
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


@pytest.mark.parametrize(("down", "up"), RESAMPLINGS, ids=str)
@pytest.mark.parametrize("causal", [True, False])
def test_padding_on_the_right_changes_nothing(causal, down, up):
    """Real tokens come out as they would without the padding: no dilution of pooled tokens."""
    module = stage((1, (1, 1, 1), 1), (3, 2), down, up, causal)
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


@pytest.mark.parametrize(
    ("down", "up", "positions"), in_turn(["rotary", "relative", "absolute"]), ids=str
)
def test_every_parameter_gets_a_gradient(down, up, positions):
    """No part of the hierarchy is dead."""
    model = HourglassTransformerLM(
        num_tokens=20,
        dim=8,
        heads=2,
        dim_head=4,
        depth=(1, (1, 2, 1), 1),
        shorten_factor=(2, 3),
        shortening=down,
        upsampling=up,
        positions=positions,
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


@pytest.mark.parametrize("norms", ["authors", "pre", "single"])
@pytest.mark.parametrize("positions", ["relative", "none", "rotary"])
def test_positions_and_norms_keep_the_reach(norms, positions):
    """Wherever LayerNorms stand, and however positions are known: no leak, full reach."""
    for causal in (True, False):
        module = stage(
            (1, (1, 1, 1), 1),
            (2, 3),
            "attention-linear",
            "attention-identity",
            causal,
            norms=norms,
            positions=positions,
        )
        expected = torch.ones(13, 13).bool()
        assert torch.equal(influence(module, 13), expected.tril() if causal else expected)


def test_relative_positions_count_in_fine_tokens():
    """A coarse token stands k fine ones from the next, in every stage and in resampling."""
    module = stage((1, (1, 1, 1), 1), (2, 3), "attention-average", positions="relative")
    inner = module.valley_transformer
    for part, stride in (
        (module.pre_transformer.layers[0].attn, 1),
        (module.attn_shorten.attn, 1),
        (inner.pre_transformer.layers[0].attn, 2),
        (inner.attn_shorten.attn, 2),
        (inner.valley_transformer.layers[0].attn, 6),
    ):
        assert part.stride == stride
    module.use_shorten_factor((3, 5))
    assert inner.valley_transformer.layers[0].attn.stride == 15


# -- shorten-factor dropout -----------------------------------------------------------------------


def test_training_draws_factors_and_evaluation_takes_any():
    """Training goes through all choices; evaluation stays at its factor, or at any other."""
    model = HourglassTransformerLM(
        num_tokens=20,
        dim=8,
        heads=2,
        dim_head=4,
        depth=(1, (1, 1, 1), 1),
        factor_choices=((2, 3), (2,)),
        positions="relative",
    )
    tokens = torch.randint(0, 20, (1, 23))
    drawn = set()
    for _ in range(30):
        model.train()(tokens)
        drawn.add((model.transformer.factor, model.transformer.valley_transformer.factor))
    assert drawn == {(2, 2), (3, 2)}
    model.eval()
    outputs = []
    for factor in (2, (3, 2), 5):
        model.use_shorten_factor(factor)
        outputs.append(model(tokens))
        logits, cache = model.prefill(tokens[:, :9])
        for i in range(9, 23):
            logits, cache = model.step(tokens[:, i], cache)
        torch.testing.assert_close(logits, outputs[-1][:, -1].detach(), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(outputs[0], outputs[1])
    with pytest.raises(ValueError, match="2 stages"):
        model.use_shorten_factor((2, 3, 4))
    with pytest.raises(ValueError, match="without projections"):
        stage((1, 1, 1), 2, "linear").use_shorten_factor(3)


# -- what older models had ------------------------------------------------------------------------


def test_the_first_configuration_files_keep_their_mathematics(tmp_path):
    """A config.json that says nothing of norms was written when attention was pre-norm."""
    model = HourglassTransformerLM(
        num_tokens=20, dim=8, heads=2, depth=(1, 1, 1), shorten_factor=2, norms="pre"
    )
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    content = json.loads(path.read_text())
    new = (
        "norms",
        "hierarchy",
        "shortening",
        "upsampling",
        "factor_choices",
        "positions",
        "compat",
    )
    for name in new:
        del content["config"][name]
    path.write_text(json.dumps(content))
    again = HourglassTransformerLM.from_pretrained(tmp_path)
    tokens = torch.randint(0, 20, (1, 11))
    assert torch.equal(again(tokens), model.eval()(tokens))


def test_the_keywords_of_the_public_package():
    """Its constructors work as they are, dim by position too."""
    options = {"depth": (1, (1, 1, 1), 1), "shorten_factor": (2, 3), "attn_resampling": True}
    model = HourglassTransformer(
        8, heads=2, dim_head=4, updown_sample_type="linear", causal=True, norm_out=True, **options
    )
    assert model(torch.randn(1, 7, 8)).shape == (1, 7, 8)
    plain = HourglassTransformerLM(
        num_tokens=20, dim=8, max_seq_len=16, depth=2, shorten_factor=None, heads=2
    )
    assert plain(torch.zeros(1, 5, dtype=torch.long)).shape == (1, 5, 20)


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
        ({"shortening": "max"}, "shortening must be 'average'"),
        ({"upsampling": "attention"}, "upsampling must be 'repeat'"),
        ({"positions": "sines"}, "positions must be 'rotary'"),
        ({"norms": "post"}, "norms must be 'authors'"),
        ({"compat": "0.0.6"}, "compat must be None or 'hourglass-transformer-pytorch-0.0.6'"),
        ({"factor_choices": (2, 3), "upsampling": "linear"}, "without projections"),
        ({"factor_choices": ((2,), (3,))}, "factor_choices must list"),
        ({"hierarchy": "2@1 4@3 1@1"}, "palindrome"),
        ({"hierarchy": "2@1 4@3 2@1", "depth": (1, 1, 1)}, "one or the other"),
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
