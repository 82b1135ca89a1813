"""Losses in place of logits: those of all logits, at the memory of a few."""

import pytest
import torch

import foveal
from foveal import patterns as P

TINY = {"num_tokens": 300, "dim": 8, "heads": 2, "dim_head": 4}
MODELS = {
    "tied": lambda: foveal.TransformerLM(
        **TINY, depth=1, pattern=P.SlidingWindow(5), tie_embeddings=True
    ),
    "pyramid": lambda: foveal.HTransformer1D(**TINY, depth=1, block_size=4, causal=True),
    "hourglass": lambda: foveal.HourglassTransformerLM(**TINY, hierarchy="1@1 1@2 1@1"),
}


@pytest.mark.parametrize("chunk", [None, 1, 7, 1000])
@pytest.mark.parametrize("name", MODELS)
def test_losses_are_those_of_all_logits(name, chunk):
    """Losses and gradients to 1e-12 in float64, with targets that are left out, for any chunk."""
    torch.manual_seed(0)
    model = MODELS[name]().double()
    tokens, targets = torch.randint(300, (2, 2, 23))
    targets[0, 3:9] = -100
    wanted = torch.nn.functional.cross_entropy(model(tokens).mT, targets, reduction="none")
    gradients = torch.autograd.grad(wanted.sum(), list(model.parameters()))
    found = model(tokens, targets=targets, chunk=chunk)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
    again = torch.autograd.grad(found.sum(), list(model.parameters()))
    torch.testing.assert_close(again, gradients, rtol=0, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(model(tokens, targets=targets, chunk=chunk), found)


def test_losses_of_packed_rows():
    """A row of two documents has the losses of its logits."""
    model = MODELS["tied"]()
    tokens, targets = torch.randint(300, (2, 1, 9))
    places = torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]])
    logits = model(tokens, position_ids=places)
    wanted = torch.nn.functional.cross_entropy(logits.mT, targets, reduction="none")
    found = model(tokens, position_ids=places, targets=targets, chunk=4)
    torch.testing.assert_close(found, wanted)


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Numbers of the largest tensor that is made."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        made = found if isinstance(found, tuple | list) else [found]
        sizes = [one.numel() for one in made if isinstance(one, torch.Tensor)]
        self.size = max([self.size, *sizes])
        return found


def test_logits_of_a_chunk_are_the_most_that_is_made():
    """Forward and backward, no tensor has as many numbers as the logits of all tokens."""
    model, length, chunk = MODELS["tied"](), 1024, 32
    tokens, targets = torch.randint(300, (2, 1, length))
    with Largest() as largest:
        model(tokens, targets=targets, chunk=chunk).sum().backward()
    assert largest.size <= max(length * 4 * 8 * 2, chunk * 300)


@pytest.mark.parametrize(
    ("targets", "chunk", "words"),
    [
        (torch.zeros(1, 4, dtype=torch.long), 2, r"targets must be .* = \(1, 5\)"),
        (torch.zeros(1, 5, dtype=torch.long), 0, "chunk must be a positive int, got chunk=0"),
    ],
)
def test_mistakes_are_named(targets, chunk, words):
    """Targets of another shape, a chunk of nothing."""
    with pytest.raises(ValueError, match=words):
        MODELS["tied"]()(torch.zeros(1, 5, dtype=torch.long), targets=targets, chunk=chunk)
