"""impl="flex": its layout of tokens and blocks, its numbers, and how often it compiles."""

import importlib

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask, flex_attention

import foveal
from foveal import patterns as P
from foveal.ops import PyramidBias, flex
from foveal.ops.flex import op, trust
from foveal.ops.flex.layout import count_pairs, layout, plan_order
from foveal.ops.tiled_op import tiled_attend
from foveal.patterns.pyramid_tiles import _PyramidTiles
from foveal.testing import assert_close, dense_attention

IMAGE = (8, 60)  # wide, so that blocks in raster order are strips
IMAGES = [
    P.Halo(IMAGE, 4, 2),
    P.Neighborhood(IMAGE, 5),
    P.Neighborhood(IMAGE, 5, causal="raster"),
    P.Axial(IMAGE, "column", causal=True),
]


def randoms(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("pattern", [*IMAGES, P.SlidingWindow(9), P.Strided(7)], ids=repr)
def test_pairs_are_counted_in_blocks(pattern):
    """Pairs of each block, from the plan's tiles, in raster order and in the plan's own."""
    length, block = 480, 16
    dense = pattern.mask(length)
    for order in (None, plan_order(pattern, length)):
        chosen = torch.arange(length) if order is None else order
        assert chosen.sort().values.equal(torch.arange(length))
        expected = dense[chosen][:, chosen].reshape(length // block, block, -1, block).sum((1, 3))
        place = None if order is None else order.argsort()
        assert count_pairs(pattern.tiles(length), place, block).equal(expected)


@pytest.mark.parametrize("pattern", IMAGES, ids=repr)
def test_images_are_laid_out_in_tiles(pattern):
    """Fewer blocks than in raster order; the mask is the pattern's own at the new places."""
    found = layout(pattern, 480, 16, "cpu")
    raster = pattern.block_mask(480, 16)
    assert found.block_mask.to_dense().sum() < 0.8 * raster.to_dense().sum()
    dense = create_mask(found.block_mask.mask_mod, 1, 1, 480, 480, device="cpu")[0, 0]
    assert dense.equal(pattern.mask(480)[found.order][:, found.order])
    assert found.order[found.place].equal(torch.arange(480))


def test_a_layout_made_in_inference_mode_can_train():
    """Autograd refuses to keep tensors that were made in inference mode."""
    with torch.inference_mode():
        found = layout(P.Halo((24, 22), 4, 2), 528, 16, "cpu")
    assert not found.order.is_inference()
    assert not found.place.is_inference()


def test_sequences_stay_as_they_are():
    """Where the plan's order is that of the tokens, or gains nothing, nothing is moved."""
    for pattern in (P.SlidingWindow(40), P.Full(causal=True), P.Axial(IMAGE, "row", causal=True)):
        assert layout(pattern, 480, 128, "cpu").order is None


@pytest.fixture
def untraced(monkeypatch):
    """FlexAttention's plain operations without the tracing of each call, most of its time."""
    module = importlib.import_module("torch.nn.attention.flex_attention")
    monkeypatch.setattr(module, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("pattern", [*IMAGES, P.TextImage(40, IMAGES[2])], ids=repr)
@pytest.mark.parametrize("biased", [False, True])
def test_reordered_tokens_give_the_same(monkeypatch, pattern, biased):
    """Bias and key mask follow the tokens; grouped-query attention too."""
    monkeypatch.setattr(op, "BLOCK", 16)
    n = 520 if isinstance(pattern, P.TextImage) else 480
    q, k, v, bias = randoms((2, 2, n, 8), (2, 1, n, 8), (2, 1, n, 16), (2, 1, n, n))
    options = {}
    if biased:
        options = {"bias": bias, "key_mask": bias[:, 0, 0] > -1}
    out, lse = foveal.attend(q, k, v, pattern, impl="flex", return_lse=True, **options)
    want, want_lse = dense_attention(q, k, v, pattern.mask(n), **options)
    assert_close(out, want, rtol=2e-5)
    assert_close(lse, want_lse, rtol=2e-5)


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("queries", ["fine", "coarse"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("neighbors", ["adjacent", "sibling"])
def test_a_pyramid_is_one_call(queries, causal, neighbors):
    """All levels side by side, with a table of relative positions and padding."""
    pattern = P.Pyramid(8, causal, neighbors, queries)
    q, k, v, table = randoms((2, 2, 150, 8), (2, 1, 150, 8), (2, 1, 150, 8), (31, 2))
    mask = torch.rand(2, 150, generator=torch.Generator().manual_seed(0)) > 0.3
    mask[1] = False
    for options in ({}, {"bias": PyramidBias(table), "key_mask": mask}):
        found = foveal.attend(q, k, v, pattern, impl="flex", return_lse=True, **options)
        want = foveal.attend(q, k, v, pattern, impl="reference", return_lse=True, **options)
        for one, other in zip(found, want, strict=True):
            assert_close(one, other, rtol=2e-5)


@pytest.mark.parametrize("pattern", [P.Pyramid(8), P.Pyramid(8, causal=True)], ids=repr)
def test_a_pyramid_visits_few_blocks(pattern):
    """The blocks of the joined levels grow almost linearly, and hold the plan's pairs."""
    visited = []
    for n in (2048, 4096):
        tiles = _PyramidTiles(pattern, n, n)
        keys = tiles.num_joined_keys
        visited.append(int(layout(tiles, keys, 64, "cpu").block_mask.to_dense().sum()))
        counts = count_pairs(tiles.tiles(keys), None, 64, tiles.rule().exists)
        assert int(counts.sum()) == pattern.num_pairs(n)
    assert visited[1] < 2.6 * visited[0]


class Counter:
    """A compiler that runs graphs as they are, and counts them."""

    graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda n: (P.SlidingWindow(100), n),
        lambda n: (P.Strided(50), n),
        lambda n: (P.Pyramid(16, causal=True), n),
        lambda n: (P.Halo((n // 10, 10), 8, 3), n // 10 * 10),
        lambda n: (P.Neighborhood((n // 10, 10), 7), n // 10 * 10),
    ],
    ids=["window", "strided", "pyramid", "halo", "neighborhood"],
)
def test_twenty_lengths_compile_at_most_three_times(monkeypatch, make):
    """One kernel serves a family of patterns at any length."""
    torch._dynamo.reset()
    counter = Counter()
    compiled = torch.compile(flex_attention, dynamic=True, backend=counter)
    monkeypatch.setattr(op, "_kernel", lambda device: compiled)
    with torch.no_grad():
        for n in range(150, 350, 10):
            pattern, length = make(n)
            q, k, v = randoms(*[(1, 2, length, 8)] * 3)
            found = foveal.attend(q, k, v, pattern, impl="flex")
            assert_close(found, foveal.attend(q, k, v, pattern, impl="tiled"), rtol=2e-5)
    assert 0 < counter.graphs <= 3


def test_it_is_trusted_only_where_it_is_right(monkeypatch):
    """A small problem is compared with tiled; a wrong kernel is left alone, with a warning."""
    ask = trust._trusted.__wrapped__
    for pattern in (P.SlidingWindow(9), P.Pyramid(8), P.Halo((8, 10), 4, 1)):
        options = (pattern, 80, 8, 16, torch.float32, "cpu")
        monkeypatch.setattr(trust, "flex_attend", tiled_attend)
        assert ask(*options)
        monkeypatch.setattr(
            trust,
            "flex_attend",
            lambda q, k, v, *rest, **more: tiled_attend(q, k, v.flip(2), *rest, **more),
        )
        with pytest.warns(UserWarning, match="FlexAttention gives wrong results"):
            assert not ask(*options)
    monkeypatch.undo()
    if not torch.cuda.is_available():  # it has no backward pass on CPU
        with pytest.warns(UserWarning, match="FlexAttention fails"):
            assert not flex.trusted(P.SlidingWindow(11), 80, (8, 8), torch.float32, "cpu")


@pytest.mark.usefixtures("unforced")
def test_a_pyramid_takes_it_on_cuda():
    """explain() says so; a CPU keeps to the tile plan."""
    assert foveal.explain(P.Pyramid(16), 4096, "cuda").impl == "flex"
    assert foveal.explain(P.Pyramid(16), 4096).impl in ("native", "tiled")


def test_what_it_lacks():
    """Dropout, gradients on CPU: the error says what to use."""
    q, k, v = randoms(*[(1, 2, 64, 8)] * 3)
    for pattern in (P.SlidingWindow(9), P.Pyramid(8)):
        with pytest.raises(ValueError, match=r"flex.*dropout.*tiled"):
            foveal.attend(q, k, v, pattern, impl="flex", dropout_p=0.1)
        with pytest.raises(ValueError, match=r"flex.*backward.*tiled"):
            foveal.attend(q.clone().requires_grad_(), k, v, pattern, impl="flex")
