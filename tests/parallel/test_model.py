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
}


def loss_of(model, tokens, targets, mask=None):
    logits = model(tokens, mask)
    found = torch.nn.functional.cross_entropy(logits.mT, targets, reduction="none")
    return (found if mask is None else found * mask).sum()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_ranks_train_what_one_process_trains(name, checkpointing):
    """The loss to 1e-12, the gradient of every weight to 1e-10, in float64."""
    torch.manual_seed(0)
    model = MODELS[name]().double()
    tokens = torch.randint(20, (2, 90))
    targets, mask = torch.randint(20, (2, 90)), torch.rand(2, 90) > 0.2
    wanted = loss_of(model, tokens, targets, mask)
    wanted.backward()
    ranks = 3

    def act(rank):
        mine = copy.deepcopy(model)
        mine.zero_grad()
        if checkpointing:
            mine.activation_checkpointing()
        parallel.shard_sequence(mine, rank)
        own = [parallel.take(x, rank, dim=1, align=8) for x in (tokens, targets, mask)]
        loss = loss_of(mine, *own)
        loss.backward()
        return loss.detach(), [p.grad for p in mine.parameters()]

    losses, grads = zip(*parallel.simulate(ranks, act), strict=True)
    torch.testing.assert_close(sum(losses), wanted.detach(), rtol=1e-12, atol=0)
    for parts, parameter in zip(zip(*grads, strict=True), model.parameters(), strict=True):
        torch.testing.assert_close(sum(parts), parameter.grad, rtol=0, atol=1e-10)


def test_models_that_cannot_be_cut_are_refused():
    """In words: another family, a second time, too many tokens in all."""
    hourglass = foveal.HourglassTransformerLM(dim=16, heads=2, hierarchy="1@1 1@2 1@1")
    model = MODELS["windows"]()

    def act(rank):
        with pytest.raises(ValueError, match="takes a TransformerLM or a HTransformer1D"):
            parallel.shard_sequence(hourglass, rank)
        mine = parallel.shard_sequence(copy.deepcopy(model), rank)
        with pytest.raises(ValueError, match="sharded already"):
            parallel.shard_sequence(mine, rank)
        tokens = torch.zeros(1, 128, dtype=torch.long)
        with pytest.raises(ValueError, match="at most max_seq_len=128 tokens on all ranks"):
            mine(tokens)

    parallel.simulate(2, act)
    assert cut_evenly(7, 2) == (3, 4)
