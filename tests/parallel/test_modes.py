"""attend and fetch among ranks in the modes of torch: recorded twice, not recorded, autocast."""

import itertools

import pytest
import torch

import foveal
from foveal import parallel
from foveal import patterns as P

SIZES = (10, 12, 18)
PATTERNS = [P.SlidingWindow(7), P.Prefix(3) | P.SlidingWindow(5), P.Pyramid(4), P.Full()]


def drawn():
    return [torch.randn(1, 2, 40, 4, dtype=torch.float64) for _ in range(3)]


def own(tensors, rank):
    borders = [0, *itertools.accumulate(SIZES)]
    return [x[:, :, borders[rank.rank] : borders[rank.rank + 1]] for x in tensors]


def joined(act):
    return [torch.cat(one, 2) for one in zip(*parallel.simulate(3, act), strict=True)]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_gradients_of_gradients_cross_ranks(pattern):
    """A penalty on gradients is that of one process: what comes back is recorded as well."""
    tensors = drawn()

    def penalised(tensors, attend):
        mine = [x.clone().requires_grad_() for x in tensors]
        cubes = attend(*mine).pow(3).sum()
        grads = torch.autograd.grad(cubes, mine, create_graph=True)
        sum(one.square().sum() for one in grads).backward()
        return [x.grad for x in mine]

    wanted = penalised(tensors, lambda *x: foveal.attend(*x, pattern))
    found = joined(
        lambda rank: penalised(own(tensors, rank), lambda *x: parallel.attend(*x, pattern, rank))
    )
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_what_was_arranged_in_inference_mode_serves_training(pattern):
    """Ranks evaluate first and train then, with what they keep; torch.func records as well."""
    tensors = drawn()

    def act(rank):
        mine = own(tensors, rank)
        with torch.inference_mode(), torch.device("meta"):
            parallel.attend(*mine, pattern, rank)
        return torch.func.grad(
            lambda *x: parallel.attend(*x, pattern, rank).square().sum(), (0, 1, 2)
        )(*mine)

    whole = [x.requires_grad_() for x in tensors]
    loss = foveal.attend(*whole, pattern).square().sum()
    wanted = torch.autograd.grad(loss, whole)
    tensors = [x.detach() for x in tensors]
    torch.testing.assert_close(joined(act), list(wanted))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_autocast_and_learned_scales_are_those_of_one_process(pattern):
    """Tensors of two dtypes become one, which travels; a scale may be a tensor."""
    q, k, v = (x.float() for x in drawn())
    v, scale = v.bfloat16(), torch.tensor([0.2, 0.9])[:, None, None]

    def act(rank):
        rank.bytes_received = 0
        with torch.autocast("cpu", torch.bfloat16):
            return [parallel.attend(*own((q, k, v), rank), pattern, rank, scale=scale)]

    with torch.autocast("cpu", torch.bfloat16):
        wanted = foveal.attend(q, k, v, pattern, scale=scale)
    torch.testing.assert_close(joined(act), [wanted], rtol=0.02, atol=0.02)


def test_what_ranks_say_differently_or_wrongly_is_named():
    """Lengths that differ from rank to rank, and arguments that there are not."""

    def act(rank):
        x = torch.randn(1, 2, 10, 4)
        for pattern in PATTERNS:
            lengths = [(10, 20), (5, 10)][rank.rank]
            with pytest.raises(ValueError, match="lengths must be alike on all ranks"):
                parallel.attend(x, x, x, pattern, rank, lengths=lengths)
            with pytest.raises(TypeError, match=r"takes no softcaps=.*did you mean 'softcap'"):
                parallel.attend(x, x, x, pattern, rank, softcaps=2.0)

    parallel.simulate(2, act)
