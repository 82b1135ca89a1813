"""Dropout where ranks share a sequence: by the place of a token, on any number of ranks."""

import copy
import threading

import numpy as np
import pytest
import torch

import foveal
from foveal import parallel
from foveal import patterns as P
from foveal.common import by_example
from foveal.common.hashing import mixed
from foveal.layers.dropout import PlacedDropout
from foveal.ops.drop import ByPlace, kept

TINY = {
    "num_tokens": 20,
    "dim": 16,
    "depth": 2,
    "heads": 2,
    "dim_head": 8,
    "max_seq_len": 64,
    "dropout": 0.3,
}
DALLE = {
    "dim": 24,
    "depth": 3,
    "heads": 2,
    "dim_head": 12,
    "num_text_tokens": 20,
    "text_seq_len": 5,
    "num_image_tokens": 20,
    "image_grid": 4,
    "attn_dropout": 0.2,
    "ff_dropout": 0.3,
}
MODELS = {
    "windows": lambda: foveal.TransformerLM(
        **TINY, kv_heads=1, pattern=[P.SlidingWindow(9), P.Prefix(4) | P.SlidingWindow(5)]
    ),
    "pyramid": lambda: foveal.HTransformer1D(**TINY, block_size=4, causal=True),
    "reversible": lambda: foveal.HTransformer1D(
        **TINY, block_size=4, causal=True, shift_tokens=True, reversible=True
    ),
    "hourglass": lambda: foveal.HourglassTransformerLM(
        **{**TINY, "depth": (1, 1, 1)}, shorten_factor=3
    ),
    "dalle": lambda: foveal.DALLE(**DALLE, shared_ff_ids=(0, 0, 1)),
}


def trained(model, tokens, ranks, seed=0):
    """The loss of all ranks together, and the gradients of all weights."""

    def act(rank):
        mine = parallel.shard_sequence(copy.deepcopy(model), rank)
        if isinstance(mine, foveal.DALLE):
            loss = mine(tokens[:, :4] + 1, tokens[:, 4:20], return_loss=True)
        else:
            loss = mine(parallel.take(tokens, rank)).square().sum()
        loss.backward()
        return loss.detach(), [p.grad for p in mine.parameters()]

    torch.manual_seed(seed)
    losses, grads = zip(*parallel.simulate(ranks, act), strict=True)
    return sum(losses), [sum(parts) for parts in zip(*grads, strict=True)]


@pytest.mark.parametrize("name", MODELS)
def test_any_number_of_ranks_drops_the_same(name):
    """Losses to 1e-12 and gradients to 1e-10 on one rank, and recomputed on three; another seed
    drops something else."""
    torch.manual_seed(0)
    model = MODELS[name]().double()
    tokens = torch.randint(1, 19, (2, 24))
    wanted, expected = trained(model, tokens, 1)
    if name == "windows":
        assert not torch.equal(trained(model, tokens, 1, seed=1)[0], wanted)
    loss, grads = trained(model.activation_checkpointing(), tokens, 3)
    torch.testing.assert_close(loss, wanted, rtol=1e-12, atol=0)
    for found, grad in zip(grads, expected, strict=True):
        torch.testing.assert_close(found, grad, rtol=0, atol=1e-10)


class Rows(threading.local, by_example._Rows):
    """Rows whose calls each thread counts for itself, as processes do."""


def cut(model, tokens, examples, ranks, seed):
    """As `trained`, where `examples` of a step's batch lie on `ranks` ranks at a time."""
    total, sums = 0.0, None
    for first in range(0, len(tokens), examples):
        with by_example.rows_of_step(seed, 3, np.arange(first, first + examples)):
            by_example._rows = Rows(by_example._rows.keys, by_example._rows.shared)
            loss, grads = trained(model, tokens[first : first + examples], ranks, seed=first)
        total = total + loss
        sums = grads if sums is None else [a + b for a, b in zip(sums, grads, strict=True)]
    return total, sums


@pytest.mark.parametrize("name", ["windows", "pyramid", "dalle"])
def test_any_layout_drops_the_same(name):
    """1 x 4, 2 x 2 and 4 x 1 ranks (examples x sequence), and micro-batches; a seed of its own."""
    torch.manual_seed(0)
    model = MODELS[name]().double()
    tokens = torch.randint(1, 19, (4, 24))
    loss, grads = cut(model, tokens, 4, 4, seed=1)
    assert not torch.allclose(cut(model, tokens, 4, 1, seed=2)[0], loss)
    for examples, ranks in ((2, 2), (1, 1), (1, 3)):
        found, others = cut(model.activation_checkpointing(), tokens, examples, ranks, seed=1)
        factor = examples / 4 if name == "dalle" else 1.0  # whose loss is a mean
        torch.testing.assert_close(found * factor, loss, rtol=1e-12, atol=0)
        for one, other in zip(others, grads, strict=True):
            torch.testing.assert_close(one * factor, other, rtol=0, atol=1e-10)


def test_attention_drops_as_often_as_it_says():
    """What is dropped has the expectation of what is not, and each head and row draws alone."""
    q = torch.zeros(3, 4, 60, 4, dtype=torch.float64)
    v = torch.eye(60, dtype=torch.float64).expand(3, 4, 60, 60)
    rate = ByPlace.of(0.25, seed=7).at(torch.arange(60), torch.arange(60))
    weights = foveal.attend(q, q, v, P.Full(), dropout_p=rate, impl="tiled")
    assert set((weights * 60 * 0.75).round(decimals=9).unique().tolist()) == {0.0, 1.0}
    share = (weights > 0).double()
    assert abs(share.mean() - 0.75) < 0.01
    flat = share.flatten(0, 1).flatten(1) - 0.75
    assert (flat @ flat.T / flat.shape[1]).fill_diagonal_(0).abs().max() < 0.02


def test_gradients_see_what_was_dropped():
    """Against differences, in float64."""
    torch.manual_seed(0)
    rate = ByPlace.of(0.4, seed=3).at(torch.arange(5, 11), torch.arange(6))
    given = [torch.randn(1, 2, 6, 3, dtype=torch.float64, requires_grad=True) for _ in "qkv"]

    def call(*given):
        return foveal.attend(*given, P.Full(causal=True), dropout_p=rate, impl="tiled")

    assert torch.autograd.gradcheck(call, given)
    with pytest.raises(ValueError, match="cannot drop by place; use impl='tiled'"):
        foveal.attend(*(x.float() for x in given), P.Full(causal=True), dropout_p=rate,
                      impl="native")  # fmt: skip


def test_words_are_even():
    """Each of 53 bits is set half of the time, and neighbours share none."""
    words = mixed(11, torch.arange(64)[:, None], torch.arange(256))
    bits = (words[..., None] >> torch.arange(11, 64)) & 1
    assert (bits.double().mean((0, 1)) - 0.5).abs().max() < 0.03
    assert (bits[:, 1:] == bits[:, :-1]).double().mean() == pytest.approx(0.5, abs=0.01)
    assert kept(0.9, words).double().mean() == pytest.approx(0.1, abs=0.01)
    assert words.unique().numel() == words.numel()


def test_a_model_that_reads_whole_prompts_drops_as_ever():
    """In training mode too, and nothing in evaluation."""
    model = MODELS["windows"]()
    tokens = torch.randint(1, 19, (1, 12))

    def act(rank):
        mine = parallel.shard_sequence(copy.deepcopy(model), rank)
        first, second = (mine.prefill(tokens)[0] for _ in range(2))
        return first, second, mine.eval().prefill(tokens)[0], mine

    ((first, second, quiet, mine),) = parallel.simulate(1, act)
    assert not torch.equal(first, second)
    torch.testing.assert_close(quiet, model.eval().prefill(tokens)[0])
    assert sum(isinstance(one, PlacedDropout) for one in mine.modules()) == 5
