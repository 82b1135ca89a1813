"""The part of the loss that a rank's own tokens make."""

import pytest
import torch
import torch.nn.functional as F

from foveal import parallel


@pytest.mark.parametrize("cut", [(5, 0, 1, 3), (0, 9), (4, 5), (1, 1, 1, 1, 5)])
def test_parts_of_the_loss_make_the_whole(cut):
    """Targets across borders, uneven parts, ranks with none; values and gradients."""
    tokens = torch.randint(1, 7, (2, 9))
    logits = torch.randn(2, 9, 7, dtype=torch.float64, requires_grad=True)
    wanted = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    wanted.backward()

    def act(rank):
        first = sum(cut[: rank.rank])
        own = slice(first, first + cut[rank.rank])
        mine = logits[:, own].detach().requires_grad_()
        targets = parallel.next_tokens(tokens[:, own], rank)
        loss = parallel.cross_entropy(mine, targets, rank)
        loss.backward()
        return loss.detach(), mine.grad

    losses, grads = zip(*parallel.simulate(len(cut), act), strict=True)
    torch.testing.assert_close(sum(losses), wanted.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.cat(grads, 1), logits.grad, rtol=0, atol=1e-12)


def test_targets_that_nobody_counts():
    """A mean over nothing is nothing, and no division by it."""

    def act(rank):
        return parallel.cross_entropy(torch.randn(1, 2, 3), torch.full((1, 2), -1), rank, -1)

    assert parallel.simulate(2, act) == [0, 0]


def test_shapes_are_named():
    """In words, before anything is exchanged."""

    def act(rank):
        with pytest.raises(ValueError, match=r"targets \(batch, own tokens\)"):
            parallel.cross_entropy(torch.zeros(1, 2, 3), torch.zeros(1, 3).long(), rank)
        with pytest.raises(ValueError, match="of an int type"):
            parallel.next_tokens(torch.zeros(1, 3), rank)

    parallel.simulate(1, act)
