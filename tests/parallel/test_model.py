"""Language models over many ranks: losses and gradients of one process."""

import copy

import pytest
import torch

import foveal
from foveal import parallel
from foveal import patterns as P
from foveal.parallel.shares import cut_evenly

TINY = {"num_tokens": 20, "dim": 16, "depth": 2, "heads": 2, "max_seq_len": 128}
MODELS = {
    "windows": lambda: foveal.TransformerLM(
        **TINY, dim_head=8, pattern=[P.SlidingWindow(9), P.Prefix(4) | P.SlidingWindow(5)]
    ),
    "alibi, sinks": lambda: foveal.TransformerLM(
        **TINY, dim_head=8, pattern=P.Strided(8), positions="alibi", sinks=True, softcap=5.0
    ),
    "pyramid": lambda: foveal.TransformerLM(
        **TINY, dim_head=8, pattern=P.Pyramid(4, causal=True), tie_embeddings=True
    ),
    "h-transformer": lambda: foveal.HTransformer1D(
        **TINY, dim_head=8, block_size=4, causal=True, shift_tokens=False
    ),
    "reversible, shifted": lambda: foveal.HTransformer1D(
        **TINY, dim_head=8, block_size=4, causal=True, shift_tokens=True, reversible=True
    ),
    "shifted both ways": lambda: foveal.HTransformer1D(
        **TINY, dim_head=8, block_size=4, shift_tokens=True
    ),
}


def hourglass(hierarchy="1@1 1@3 1@1", **options):
    sizes = {**TINY, "dim_head": 8, "depth": (4, 2, 4), **options}
    return foveal.HourglassTransformerLM(**sizes, hierarchy=hierarchy)


NESTED = "1@1 1@2 1@6 1@2 1@1"
HOURGLASSES = {
    "means": lambda: hourglass(
        attn_resampling=False, pattern=[P.SlidingWindow(9), P.SlidingWindow(3)]
    ),
    "linear, nested": lambda: hourglass(
        NESTED, attn_resampling=False, updown_sample_type="linear", positions="absolute"
    ),
    "attention": lambda: hourglass(),
    "the paper's, nested": lambda: hourglass(
        NESTED,
        shortening="attention-average",
        upsampling="attention-linear",
        positions="relative",
        dim_head=None,
    ),
    "both ways": lambda: hourglass(causal=False, attn_resampling=False, norms="single"),
    "both ways, attention, nested": lambda: hourglass(
        NESTED, causal=False, upsampling="attention-identity", pattern=P.SlidingWindow(7, False)
    ),
}


def loss_of(model, tokens, targets, mask=None):
    logits = model(tokens, mask)
    found = torch.nn.functional.cross_entropy(logits.mT, targets, reduction="none")
    return (found if mask is None else found * mask).sum()


def compare(model, cut, with_mask):
    """The loss of ranks with `cut` tokens each to 1e-12 of one process's, gradients to 1e-10."""
    length = sum(cut)
    tokens, targets = torch.randint(20, (2, length)), torch.randint(20, (2, length))
    mask = torch.rand(2, length) > 0.2 if with_mask else None
    wanted = loss_of(model, tokens, targets, mask)
    wanted.backward()

    def act(rank):
        mine = parallel.shard_sequence(copy.deepcopy(model), rank)
        mine.zero_grad()
        first = sum(cut[: rank.rank])
        own = slice(first, first + cut[rank.rank])
        loss = loss_of(
            mine, tokens[:, own], targets[:, own], None if mask is None else mask[:, own]
        )
        loss.backward()
        return loss.detach(), [p.grad for p in mine.parameters()]

    losses, grads = zip(*parallel.simulate(len(cut), act), strict=True)
    torch.testing.assert_close(sum(losses), wanted.detach(), rtol=1e-12, atol=0)
    for parts, parameter in zip(zip(*grads, strict=True), model.parameters(), strict=True):
        torch.testing.assert_close(sum(parts), parameter.grad, rtol=0, atol=1e-10)


RECOMPUTED = ["windows", "pyramid", "reversible, shifted"]


@pytest.mark.parametrize(
    ("name", "checkpointing"),
    [*((name, False) for name in MODELS), *((name, True) for name in RECOMPUTED)],
)
def test_ranks_train_what_one_process_trains(name, checkpointing):
    """In float64, whole blocks on 3 ranks and a mask; recomputed, a token alone on one of 2."""
    torch.manual_seed(0)
    model = MODELS[name]().double().activation_checkpointing(checkpointing)
    compare(model, (40, 1) if checkpointing else (24, 16, 26), with_mask=not checkpointing)


@pytest.mark.parametrize("name", HOURGLASSES)
def test_hourglasses_train_on_ranks_that_cut_groups(name):
    """Borders inside groups of every level, a token alone, a rank with none, padding; and
    borders between groups, recomputed."""
    torch.manual_seed(0)
    model = HOURGLASSES[name]().double()
    compare(model, (31, 1, 0, 13), with_mask=True)
    if name in ("attention", "linear, nested"):
        model.zero_grad()
        compare(model.activation_checkpointing(), (24, 12), with_mask=False)


def test_models_that_cannot_be_cut_are_refused():
    """In words: another family, a second time, too many tokens in all."""
    pair = foveal.models.HTransformerSeq2Seq(dim=16, enc_depth=1, dec_depth=1, heads=2)
    package = hourglass(compat="hourglass-transformer-pytorch-0.0.6", norms="single")
    model = MODELS["windows"]()

    def act(rank):
        with pytest.raises(ValueError, match=r"takes a TransformerLM.* got HTransformerSeq2Seq"):
            parallel.shard_sequence(pair, rank)
        with pytest.raises(ValueError, match="computes as another package does"):
            parallel.shard_sequence(package, rank)
        mine = parallel.shard_sequence(copy.deepcopy(model), rank)
        with pytest.raises(ValueError, match="sharded already"):
            parallel.shard_sequence(mine, rank)
        tokens = torch.zeros(1, 128, dtype=torch.long)
        with pytest.raises(ValueError, match="either packed with documents or shared"):
            mine(tokens, position_ids=torch.arange(128)[None])
        with pytest.raises(ValueError, match="at most max_seq_len=128 tokens on all ranks"):
            mine(tokens)

    parallel.simulate(2, act)
    assert cut_evenly(7, 2) == (3, 4)


def test_ranks_draw_the_same_factors():
    """Training with several shorten factors: what the first rank draws holds for all."""
    model = hourglass(NESTED, attn_resampling=False, factor_choices=[2, 3, 5, 7])

    def act(rank):
        mine, drawn = parallel.shard_sequence(copy.deepcopy(model), rank), []
        for _ in range(4):
            mine(torch.zeros(1, 9 + rank.rank, dtype=torch.long))
            drawn.append((mine.transformer.factor, mine.transformer.valley_transformer.factor))
        return drawn

    one, *others = parallel.simulate(3, act)
    assert len(set(one)) > 1
    assert others == [one, one]


WINDOWS = [P.SlidingWindow(9), P.SlidingWindow(3)]
COUNTED = {
    # attention before, inside and after; shortening, upsampling
    "hourglass": (lambda: hourglass(attn_resampling=False, pattern=WINDOWS), (17, 19), 5),
    "hourglass, whole groups": (
        lambda: hourglass(attn_resampling=False, pattern=WINDOWS),
        (18, 18),
        4,
    ),
    # both resample by attention too
    "hourglass, attention": (lambda: hourglass(), (17, 19), 7),
    # a shift in front of either branch, and attention
    "shifted": (
        lambda: foveal.HTransformer1D(
            **{**TINY, "depth": 1}, dim_head=8, attention="full", causal=True,
            shift_tokens=True,
        ),
        (18, 18),
        3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTED)
def test_whatever_reads_neighbours_exchanges_once_a_direction(name):
    """One exchange for each layer, shift and resampling, as many on the way back; lengths once."""
    make, cut, expected = COUNTED[name]
    model = make()

    def act(rank):
        mine, calls = parallel.shard_sequence(copy.deepcopy(model), rank), []
        own = torch.zeros(1, cut[rank.rank], dtype=torch.long)
        mine(own)  # ranks ask each other once what they need

        def counted(kind):
            inner = getattr(rank, kind)
            return lambda *given: calls.append(kind) or inner(*given)

        rank.exchange, rank.gather = counted("exchange"), counted("gather")
        loss = mine(own).sum()
        forward, calls[:] = list(calls), []
        loss.backward()
        return forward.count("exchange"), forward.count("gather"), calls

    for found in parallel.simulate(2, act):
        assert found == (expected, 1, ["exchange"] * expected)
