"""Image models over rows of the image: logits, losses, gradients and statistics of one process."""

import copy
import functools

import pytest
import torch

from foveal import parallel
from foveal.models import HaloNet, SepVisionTransformer, SepViT

TINY = {
    "num_classes": 5,
    "depths": (1, 2),
    "dims": (8, 16),
    "heads": (2, 2),
    "strides": (1, 2),
    "block_size": 4,
    "halo_size": 3,
    "stem_dim": 8,
    "bottleneck_ratio": 2.0,
}
SMALL = {
    "num_classes": 5,
    "depths": (1, 2),
    "dims": (8, 16),
    "heads": (1, 2),
    "window_sizes": ((3,), (3, 4)),
    "strides": (2, 2),
    "image_size": 32,
}
MODELS = {
    "halonet": lambda: HaloNet(**TINY),
    "halonet, paddings": lambda: HaloNet(
        **TINY, padding="attend", global_pool="catavgmax", drop_path_rate=0.0
    ),
    "halonet, se": lambda: HaloNet(
        **TINY,
        mixers=(("conv",), ("conv", "halo")),
        channel_attention="se",
        stem_dims=(4, 8),
        stem_stride=4,
        stem_pool=False,
        final_dim=12,
    ),
    "halonet, eca, map": lambda: HaloNet(
        **TINY,
        mixers=(("halo", "conv"), ("map", "conv")),
        channel_attention="eca",
        image_size=32,
        group_width=4,
    ),
    "sepvit": lambda: SepVisionTransformer(**SMALL),
    "sepvit, global": lambda: SepVisionTransformer(
        **{**SMALL, "window_sizes": ((3,), (8,))}, stem_dims=(4,), window_tokens="zero"
    ),
    "sepvit, compact": lambda: SepViT(
        num_classes=5, dim=8, depth=(1, 1), heads=2, window_size=3, dim_head=4, ff_mult=2
    ),
}


def cut(x, sizes, rank):
    first = sum(sizes[:rank])
    return x[:, :, first : first + sizes[rank]]


def run(model, images, targets):
    """Loss, logits, gradients, and what the batch norms remember."""
    logits = model(images)
    loss = torch.nn.functional.cross_entropy(logits, targets)
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    kept = {name: x.clone() for name, x in model.named_buffers()}
    return loss.detach(), logits.detach(), grads, kept


def started(name):
    """A model, whose window tokens are no zeros as they are at first."""
    torch.manual_seed(0)
    model = MODELS[name]().double().train()
    for key, parameter in model.named_parameters():
        if key.endswith("win_tokens"):
            torch.nn.init.normal_(parameter)
    return model


def compare(model, height, width, sizes, change=lambda model: None):
    """Largest difference of the ranks' gradients from those of one process."""
    images = torch.randn(2, 3, height, width, dtype=torch.float64)
    targets = torch.tensor([1, 3])
    before = copy.deepcopy(model)
    change(before)
    wanted = run(before, images, targets)

    def act(rank):
        mine = copy.deepcopy(model)
        change(mine)
        parallel.shard_rows(mine, rank)
        return run(mine, cut(images, sizes, rank.rank), targets)

    found = parallel.simulate(len(sizes), act)
    for loss, logits, _, kept in found:
        assert torch.equal(logits, found[0][1])
        torch.testing.assert_close(loss, wanted[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(logits, wanted[1], rtol=0, atol=1e-10)
        for name, one in kept.items():
            torch.testing.assert_close(one, wanted[3][name], rtol=0, atol=1e-10, msg=name)
    worst = 0.0
    for name, grad in wanted[2].items():
        parts = [one[2][name] for one in found if one[2][name] is not None]  # of no rows: none
        worst = max(worst, float((sum(parts) - grad).abs().max()))
    return worst


@pytest.mark.parametrize("name", MODELS)
def test_ranks_train_what_one_process_trains(name):
    """Rows cut anywhere, images of odd sizes, ranks without rows: to 1e-10."""
    model = started(name)
    assert compare(model, 53, 21, (21, 19, 13)) < 1e-10
    assert compare(model, 37, 22, (1, 0, 30, 6)) < 1e-10


@pytest.mark.parametrize("name", ["halonet, se", "sepvit"])
def test_checkpointing_and_evaluation(name):
    """Rows cut evenly; activations computed again; batch norms as they were trained."""
    model = started(name)
    assert compare(model, 48, 24, (24, 24), lambda one: one.set_grad_checkpointing()) < 1e-10
    assert compare(model, 48, 24, (24, 24), lambda one: one.eval()) < 1e-10


def test_maps_are_of_the_own_rows():
    """Features of each stage, logits of every pixel, gradients: those of the whole, cut."""
    images = torch.randn(1, 3, 50, 20, dtype=torch.float64)
    torch.manual_seed(0)
    for options in ({"features_only": True}, {"global_pool": ""}):
        model = HaloNet(**TINY, **options).double()
        own = copy.deepcopy(model)
        wanted = own(images)
        wanted = wanted if isinstance(wanted, list) else [wanted]
        sum(one.square().sum() for one in wanted).backward()

        def act(rank, model=model):
            mine = parallel.shard_rows(copy.deepcopy(model), rank)
            maps = mine(parallel.take(images, rank, dim=2))
            maps = maps if isinstance(maps, list) else [maps]
            sum(one.square().sum() for one in maps).backward()
            return [one.detach() for one in maps], [p.grad for p in mine.parameters()]

        maps, grads = zip(*parallel.simulate(3, act), strict=True)
        for found, one in zip(zip(*maps, strict=True), wanted, strict=True):
            torch.testing.assert_close(torch.cat(found, 2), one, rtol=0, atol=1e-10)
        for found, one in zip(zip(*grads, strict=True), own.parameters(), strict=True):
            torch.testing.assert_close(sum(found), one.grad, rtol=1e-12, atol=1e-10)


def test_what_drops_whole_images_drops_them_on_all_ranks():
    """Stochastic depth and the head's dropout: ranks of any seeds have the same logits."""
    model = HaloNet(**{**TINY, "drop_path_rate": 0.5, "drop_rate": 0.5}).train()
    images = torch.randn(6, 3, 32, 20)

    def act(rank):
        mine = parallel.shard_rows(copy.deepcopy(model), rank)
        logits = [mine(parallel.take(images, rank, dim=2)) for _ in range(2)]
        logits[1].sum().backward()  # no rank waits for another
        return [one.detach() for one in logits]

    (first, second), other = parallel.simulate(2, act)
    assert torch.equal(first, other[0])
    assert torch.equal(second, other[1])
    assert not torch.equal(first, second)


def test_a_sharded_model_can_be_copied():
    """A copy has layers and maps of its own, and the same ranks."""
    model = started("sepvit").eval()
    images = torch.randn(1, 3, 40, 20, dtype=torch.float64)

    def act(rank):
        mine = parallel.shard_rows(copy.deepcopy(model), rank)
        twin = copy.deepcopy(mine)
        with torch.no_grad():
            for parameter in mine.parameters():
                parameter.zero_()
            return twin(parallel.take(images, rank, dim=2))

    torch.testing.assert_close(parallel.simulate(2, act)[1], model(images))


@pytest.mark.parametrize("name", ["halonet", "sepvit", "sepvit, compact"])
def test_cuts_at_the_alignment_of_a_model_move_the_least(name):
    """Fewer bytes in all than cuts beside it, and the same logits."""
    model = started(name).eval()
    rows = parallel.alignment(model)
    images = torch.randn(1, 3, 2 * rows, 12, dtype=torch.float64)

    def act(rank, first):
        mine = parallel.shard_rows(copy.deepcopy(model), rank)
        part = images[:, :, :first] if rank.rank == 0 else images[:, :, first:]
        with torch.no_grad():
            mine(part)  # which asks for sizes
            rank.bytes_received = 0
            return mine(part), rank.bytes_received

    cuts = (rows, rows - 8, rows + 5)
    found = [parallel.simulate(2, functools.partial(act, first=first)) for first in cuts]
    bytes_at, *beside = [sum(one[1] for one in ranks) for ranks in found]
    assert bytes_at < min(beside)
    for ranks in found:
        torch.testing.assert_close(ranks[1][0], found[0][0][0], rtol=0, atol=1e-10)


class Blurred(torch.nn.Module):
    """A layer that nobody knows."""

    def forward(self, x):
        return x


def test_models_that_cannot_be_cut_are_refused():
    """In words: no image model, an unknown layer or padding, a second time, too small an image."""
    tiny = HaloNet(**TINY)

    def act(rank):
        with pytest.raises(ValueError, match="takes an image model such as HaloNet, got Linear"):
            parallel.shard_rows(torch.nn.Linear(2, 2), rank)
        odd = copy.deepcopy(tiny)
        odd.stages[0][0].mix.dropout = 0.1
        with pytest.raises(ValueError, match=r"share a picture, got 0\.1 in stages\.0\.0"):
            parallel.shard_rows(odd, rank).train()(torch.randn(1, 3, 16, 20))
        odd = copy.deepcopy(tiny)
        odd.final = Blurred()
        with pytest.raises(ValueError, match="final is a Blurred, of which it is not known"):
            parallel.shard_rows(odd, rank)
        odd.final = torch.nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")
        with pytest.raises(ValueError, match="must pad with zeros"):
            parallel.shard_rows(odd, rank)
        odd.final = torch.nn.Conv2d(16, 16, 9)
        parallel.shard_rows(odd, rank)  # a model that was refused is as it was
        with pytest.raises(ValueError, match="sharded already"):
            parallel.shard_rows(odd, rank)
        with pytest.raises(ValueError, match="an image of 32 rows is too small"):
            odd(torch.randn(1, 3, 16, 20))

    parallel.simulate(2, act)
