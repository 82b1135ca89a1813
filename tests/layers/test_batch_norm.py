"""Batch norms over ranks: what one process makes of the whole batch, statistics included."""

import copy

import pytest
import torch
from torch import nn

from foveal.layers.batch_norm import share_batch_norms
from foveal.models import HaloNet, SepVisionTransformer
from foveal.parallel import simulate

KINDS = {
    "maps": (lambda: nn.BatchNorm2d(3), (7, 3, 4, 5)),
    "rows": (lambda: nn.BatchNorm1d(5), (9, 5)),
    "sequences, no weights": (lambda: nn.BatchNorm1d(4, affine=False), (6, 4, 3)),
    "volumes, cumulative": (lambda: nn.BatchNorm3d(2, momentum=None), (5, 2, 2, 3, 2)),
    "no statistics kept": (lambda: nn.BatchNorm2d(3, track_running_stats=False), (6, 3, 2, 2)),
}


def run(layer, batches):
    """Outputs, gradients of inputs, and of weights, of a loss that is no sum of squares."""
    found = []
    for x in batches:
        x = x.clone().requires_grad_()
        y = layer(x)
        (y.sin() * torch.arange(y.shape[1:].numel()).reshape(y.shape[1:])).sum().backward()
        found.append((y.detach(), x.grad))
    return found, [p.grad for p in layer.parameters()]


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (3, 1), (2, 0, 2)], ids=str)
@pytest.mark.parametrize("name", KINDS)
def test_parts_of_a_batch_are_normalised_as_the_whole(name, sizes):
    """Values, gradients and running statistics, to 1e-12; parts uneven, or empty."""
    make, shape = KINDS[name]
    torch.manual_seed(0)
    alone = make().double()
    for p in alone.parameters():
        nn.init.normal_(p)
    batches = [torch.randn(shape, dtype=torch.float64) * 3 + 10 for _ in range(2)]
    ends = [round(sum(sizes[:i]) / sum(sizes) * shape[0]) for i in range(len(sizes) + 1)]
    copies = [copy.deepcopy(alone) for _ in sizes]

    def act(rank):
        layer = copies[rank.rank]
        assert share_batch_norms(layer, lambda row: rank.gather(row[None], [1] * rank.size)) == 1
        return run(layer, [x[ends[rank.rank] : ends[rank.rank + 1]] for x in batches])

    parts = simulate(len(sizes), act)
    whole, weights = run(alone, batches)
    for number, (y, grad) in enumerate(whole):
        torch.testing.assert_close(
            torch.cat([p[0][number][0] for p in parts]), y, rtol=0, atol=1e-12
        )
        found = torch.cat([p[0][number][1] for p in parts])
        torch.testing.assert_close(found, grad, rtol=1e-10, atol=1e-11)
    for number, grad in enumerate(weights):
        found = sum(p[1][number] for p in parts)
        torch.testing.assert_close(found, grad, rtol=1e-10, atol=1e-10)
    for layer in copies:
        assert layer.state_dict().keys() == alone.state_dict().keys()
        for key, value in alone.state_dict().items():
            torch.testing.assert_close(layer.state_dict()[key], value, rtol=1e-12, atol=1e-12)
            assert torch.equal(layer.state_dict()[key], copies[0].state_dict()[key])
        torch.testing.assert_close(
            copy.deepcopy(layer).eval()(batches[0]), alone.eval()(batches[0])
        )


PICTURES = {"in_chans": 2, "num_classes": 3}
HALONET = {"dims": (8, 8), "depths": (1, 1), "heads": (2, 2), "strides": (1, 2), "stem_dim": 4}
HALONET |= {"block_size": 4, "halo_size": 1, "stem_kernel": 3}
SEPVIT = {
    "dims": (8, 16),
    "depths": (1, 1),
    "heads": (2, 2),
    "window_sizes": ((2,), (2,)),
    "strides": (2, 2),
}
MODELS = {
    "halonet": lambda: HaloNet(**PICTURES, **HALONET),
    "hybrid": lambda: HaloNet(**PICTURES, **HALONET, conv_stages=(0,)),
    "sepvit": lambda: SepVisionTransformer(**PICTURES, **SEPVIT, stem_dims=(4, 8)),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_train_on_ranks_as_on_one(name):
    """The mean of the ranks' gradients, and what is remembered, are those of the whole batch."""
    torch.manual_seed(0)
    alone = MODELS[name]().double()
    copies = [copy.deepcopy(alone) for _ in range(2)]
    x = torch.randn(4, 2, 16, 16, dtype=torch.float64)

    def loss(model, x):
        model(x).log_softmax(1)[:, 0].mean().backward()
        return model

    def act(rank):
        share_batch_norms(copies[rank.rank], lambda row: rank.gather(row[None], [1] * rank.size))
        return loss(copies[rank.rank], x.chunk(2)[rank.rank])

    simulate(2, act)
    loss(alone, x)
    assert any("running_var" in key for key in alone.state_dict())
    for key, value in alone.state_dict().items():
        for model in copies:
            torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-12, atol=1e-12)
    for wanted, *found in zip(*(m.parameters() for m in (alone, *copies)), strict=True):
        mean = sum(p.grad for p in found) / 2
        torch.testing.assert_close(mean, wanted.grad, rtol=1e-10, atol=1e-12)


def test_one_value_is_no_batch():
    """As torch says of one process."""
    layer = nn.BatchNorm1d(3)
    share_batch_norms(layer, lambda row: row[None])
    with pytest.raises(ValueError, match="more than one value of each channel, got 1"):
        layer(torch.zeros(1, 3))


def test_half_precision_stays():
    """bfloat16 in and out, sums in float32, as torch computes it."""
    layer, other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    share_batch_norms(layer, lambda row: row[None])
    x = torch.randn(4, 3, 5, 5).bfloat16()
    found, wanted = layer(x), other(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(layer.running_var, other.running_var)
