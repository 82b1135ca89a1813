"""Cached decoding equals the full forward pass, for every pattern, model and split."""

import math

import pytest
import torch

from foveal import patterns as P
from foveal.models import HourglassTransformerLM, TransformerLM

LENGTH = 53
VOCABULARY = 20

PATTERNS = [
    P.Full(causal=True),
    P.SlidingWindow(9),
    P.Blocks(8, causal=True, lookback=1),
    P.Axial((10, 10), causal=True),
    P.Axial((10, 10), "column", causal=True),
    P.Axial((10, 10), causal=True, wrap=True),
    P.Neighborhood((10, 10), 3, causal="raster"),
    P.Neighborhood((11, 7), 5, 2, causal="corner"),
    P.Strided(8),
    P.Fixed(8, 2),
    P.TextImage(13, P.Neighborhood((7, 12), 3, causal="raster")),
    P.Union(P.SlidingWindow(5), P.Strided(11)),
    P.Intersection(P.SlidingWindow(20), P.Fixed(6, 1)),
    P.BlockSparse.fixed(112, block_size=8, attention="unidirectional"),
    P.BlockSparse.bigbird(112, block_size=8, attention="unidirectional", seed=3),
]

HOURGLASSES = [
    {"depth": (1, 1, 1), "shorten_factor": 2, "updown_sample_type": "linear"},
    {"depth": (1, 1, 1), "shorten_factor": 5, "attn_resampling": False},
    {"depth": (1, (1, 1, 1), 1), "shorten_factor": (2, 3)},
    {
        "depth": (0, (1, (1, 1, 0), 1), 1),
        "shorten_factor": (3, 2, 2),
        "updown_sample_type": "linear",
        "attn_resampling": False,
    },
    {
        "depth": (1, 2, 1),
        "shorten_factor": 4,
        "pattern": [P.SlidingWindow(6), [P.Fixed(4, 1), P.Full(causal=True)]],
    },
    {"depth": 2, "pattern": P.SlidingWindow(7)},
    {
        "hierarchy": "1@1 1@2 1@6 1@2 1@1",
        "shortening": "attention-average",
        "upsampling": "attention-identity",
        "positions": "relative",
    },
    {
        "depth": (1, 1, 1),
        "shorten_factor": 3,
        "positions": "relative",
        "pattern": [P.SlidingWindow(6), P.Strided(4)],
        "kv_heads": 1,
    },
    {"depth": (1, 1, 1), "shorten_factor": 3, "norms": "pre"},
    {"depth": (1, (1, 1, 1), 1), "shorten_factor": 2, "norms": "single", "positions": "absolute"},
]

NESTINGS = [((1, 1, 1), 4), ((1, (1, 1, 0), 1), (2, 3)), ((0, (1, (1, 1, 1), 1), 1), (3, 2, 2))]
SHORTENINGS = ["average", "linear", "attention-average", "attention-linear"]
UPSAMPLINGS = ["repeat", "linear", "attention-repeat", "attention-linear", "attention-identity"]
# every shortening with every upsampling, and each of both in every nesting
RESAMPLINGS = [
    (down, up, *NESTINGS[(i + j) % len(NESTINGS)])
    for i, down in enumerate(SHORTENINGS)
    for j, up in enumerate(UPSAMPLINGS)
]


def check_splits(model, splits, steps):
    """prefill(n) and the steps after it give the rows of the forward pass to 1e-10."""
    model = model.double().eval()
    tokens = torch.randint(0, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        full = model(tokens)
    for n in splits:
        logits, cache = model.prefill(tokens[:, :n])
        rows = [logits]
        for i in range(n, min(LENGTH, n + steps)):
            logits, cache = model.step(tokens[:, i], cache)
            rows.append(logits)
        expected = full[:, n - 1 : n - 1 + len(rows)]
        torch.testing.assert_close(torch.stack(rows, 1), expected, rtol=0, atol=1e-10)
        assert cache.position == n - 1 + len(rows)


def transformer(pattern, **options):
    torch.manual_seed(1)
    sizes = {"dim": 8, "depth": 2, "heads": 2, "dim_head": 4, "kv_heads": 1} | options
    return TransformerLM(num_tokens=VOCABULARY, pattern=pattern, **sizes)


def tokens_of_a_group(factor):
    return math.prod(factor) if isinstance(factor, tuple) else factor


def hourglass(**options):
    torch.manual_seed(1)
    return HourglassTransformerLM(num_tokens=VOCABULARY, dim=8, heads=2, dim_head=4, **options)


@pytest.mark.parametrize(
    "pattern",
    [
        P.Full(causal=True),
        P.SlidingWindow(5),
        P.Strided(4),
        P.Pyramid(2, causal=True, queries="fine"),
        P.Pyramid(2, causal=True, queries="coarse"),
        P.BlockSparse(torch.stack((torch.eye(7), torch.ones(7, 7))) > 0, 16, True),
    ],
    ids=str,
)
def test_sinks_and_soft_cap_decode(pattern):
    """Caches know both, whatever they hold; logits are made large enough to be capped."""
    for options in ({"softcap": 0.7}, {"sinks": True}, {"softcap": 2.0, "sinks": True}):
        model = transformer(pattern, **options)
        for name, x in model.named_parameters():
            if name.endswith("sinks"):
                torch.nn.init.normal_(x, std=2.0)
            if name.endswith("to_qkv.weight"):
                x.data *= 8
        check_splits(model, [1, 13], 20)
        single = model.float()
        prompt = torch.randint(0, VOCABULARY, (1, 3))
        kinds = [single.generate(prompt, 9, temperature=0, use_cache=one) for one in (True, False)]
        assert torch.equal(*kinds)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_transformer_every_split(pattern):
    """Every prompt length goes over into an exact step; from one token, to the very end."""
    model = transformer(pattern, depth=1)
    check_splits(model, range(2, LENGTH + 1), 1)
    check_splits(model, [1, 30], LENGTH)


@pytest.mark.parametrize("options", HOURGLASSES, ids=str)
def test_hourglass_every_split(options):
    """The same through every nesting and resampling: a stage steps once per k tokens.

    Prompts end at every place of a group, twice: of up to 12 tokens.
    """
    model = hourglass(**options)
    group = tokens_of_a_group(options.get("shorten_factor", 6 if "hierarchy" in options else 1))
    check_splits(model, range(2, 2 + 2 * max(group, 4)), 2)
    check_splits(model, [1, 30], LENGTH)


@pytest.mark.parametrize(("down", "up", "depth", "factor"), RESAMPLINGS)
def test_every_resampling_decodes(down, up, depth, factor):
    """Each shortening with each upsampling, nested once to thrice: exact from every kind of
    prompt, one that ends a group, begins one or stands inside, for longer than a group."""
    model = hourglass(depth=depth, shorten_factor=factor, shortening=down, upsampling=up)
    check_splits(model, [1, 23, 24, 25], tokens_of_a_group(factor) + 1)


def test_layers_with_different_patterns():
    """A list of patterns decodes layer by layer, each with its own cache."""
    model = transformer([P.SlidingWindow(4), P.Full(causal=True)])
    check_splits(model, [1, 40], LENGTH)
    _, cache = model.prefill(torch.zeros(1, 80, dtype=torch.long))
    near, far = cache.parts
    assert near.num_bytes < far.num_bytes / 10
    assert cache.num_bytes == near.num_bytes + far.num_bytes


def test_heads_with_their_own_layouts():
    """A block-sparse layout for each head, one of them empty, decodes exactly."""
    torch.manual_seed(2)
    layout = torch.rand(2, 13, 13) < 0.3
    layout[1, 4:] = False
    model = TransformerLM(
        num_tokens=VOCABULARY,
        dim=8,
        depth=1,
        heads=2,
        dim_head=4,
        pattern=P.BlockSparse(layout, 8, causal=True),
    )
    check_splits(model, [1, 30], LENGTH)


@pytest.mark.parametrize(
    "model",
    [transformer(P.SlidingWindow(4)), hourglass(depth=(1, 1, 1), shorten_factor=3)],
    ids=["transformer", "hourglass"],
)
def test_generate_with_and_without_cache(model):
    """Greedy generation is the same tokens either way, also for rows of different lengths."""
    model = model.double()
    prompts = [torch.tensor(row) for row in ([1, 2, 3, 4, 5, 6, 7], [9], [4, 4, 8])]
    cached = model.generate(prompts, 20, temperature=0)
    assert torch.equal(cached, model.generate(prompts, 20, temperature=0, use_cache=False))
    for row, prompt in zip(cached, prompts, strict=True):
        alone = model.generate(prompt[None], 20, temperature=0)[0]
        assert torch.equal(row[: len(alone)], alone)
        assert (row[len(alone) :] == 0).all()


def test_generate_is_seeded_and_leaves_the_mode():
    """A seed repeats the draw; dropout is off while generating and back afterwards."""
    model = transformer(P.Full(causal=True))
    model.emb_dropout.p = 0.5
    prompt = torch.tensor([[1, 2]])
    one = model.generate(prompt, 30, seed=5, top_p=0.9)
    assert torch.equal(one, model.generate(prompt, 30, seed=5, top_p=0.9))
    assert one.shape == (1, 32)
    assert model.training


def test_clone_tries_two_continuations():
    """A cloned state goes its own way without disturbing the other, also in a hierarchy."""
    model = hourglass(depth=(1, (1, 1, 1), 1), shorten_factor=2).double().eval()
    tokens = torch.randint(0, VOCABULARY, (1, 12))
    _, cache = model.prefill(tokens[:, :9])
    twin = cache.clone()
    for _ in range(3):
        _, twin = model.step(torch.tensor([0]), twin)
    for i in range(9, 12):
        logits, cache = model.step(tokens[:, i], cache)
    torch.testing.assert_close(logits, model(tokens)[:, -1].detach(), rtol=0, atol=1e-10)


def test_decoding_under_autocast():
    """bfloat16 decoding stays near bfloat16 forward, and stores bfloat16 keys."""
    model = transformer(P.SlidingWindow(8)).eval()
    tokens = torch.randint(0, VOCABULARY, (1, 30))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        full = model(tokens)
        _, cache = model.prefill(tokens[:, :20])
        for i in range(20, 30):
            logits, cache = model.step(tokens[:, i], cache)
    torch.testing.assert_close(logits.float(), full[:, -1].float(), rtol=0.05, atol=0.05)
    assert cache.num_bytes == 2 * 8 * 4 * 2 * 2


@pytest.mark.parametrize("model", [transformer(P.Full()), hourglass(causal=False)])
def test_bidirectional_models_do_not_decode(model):
    """A model that reads the future says so instead of decoding wrongly."""
    with pytest.raises(ValueError, match="causal"):
        model.prefill(torch.zeros(1, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="causal"):
        model.generate(torch.zeros(1, 3, dtype=torch.long), 2)


def test_nonsense_requests():
    """Too long, empty and foreign prompts are one clear error each."""
    model = TransformerLM(num_tokens=10, dim=8, depth=1, heads=2, dim_head=4, max_seq_len=6)
    prompt = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="max_seq_len=6"):
        model.generate(prompt, 3)
    with pytest.raises(ValueError, match="max_seq_len=6"):
        model(torch.zeros(1, 7, dtype=torch.long))
    with pytest.raises(ValueError, match="at least one token"):
        model.generate(prompt[:, :0], 1)
    with pytest.raises(ValueError, match="tokens from 0 to 9, got values from 0 to 10"):
        model.generate(torch.tensor([[0, 10]]), 1)
    with pytest.raises(ValueError, match="temperature"):
        model.generate(prompt, 1, temperature=-1)
    _, cache = model.prefill(torch.zeros(1, 6, dtype=torch.long))
    with pytest.raises(ValueError, match="max_seq_len=6"):
        model.step(torch.tensor([1]), cache)
    with pytest.raises(ValueError, match="token must be"):
        model.step(torch.tensor([[1]]), model.prefill(prompt)[1])
