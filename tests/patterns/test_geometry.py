"""Every pattern against its own definition: plans, counts, decoding views and intervals."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal import patterns as P
from foveal.testing.contract import tiling_mask

side = st.integers(1, 21)
kernel = st.sampled_from([1, 3, 5, 11])
causal = st.booleans()


@st.composite
def one_dimensional(draw):
    length = draw(st.sampled_from([1, 2, 7, 63, 64, 65, 97, 130, 257]))
    window = draw(st.integers(1, 150))
    pattern = draw(
        st.sampled_from(
            [
                P.Full(draw(causal)),
                P.SlidingWindow(window, draw(causal)),
                P.Blocks(window, draw(causal), draw(st.integers(0, 3))),
                P.Strided(min(window, 40), draw(causal)),
                P.Fixed(min(window, 40) + 1, draw(st.integers(1, min(window, 40))), draw(causal)),
            ]
        )
    )
    return pattern, length


@st.composite
def two_dimensional(draw, causal_only=False):
    size = (draw(side), draw(side))
    k, d = (draw(kernel), draw(kernel)), draw(st.sampled_from([1, 2, (1, 3)]))
    axis = draw(st.sampled_from(["row", "column"]))
    choices = [
        P.Neighborhood(size, k, d, "raster"),
        P.Neighborhood(size, k, d, "raster", "wrap"),
        P.Neighborhood(size, (draw(st.integers(1, 6)), 4), d, "corner"),
        P.Axial(size, axis, True),
        P.Axial(size, axis, True, wrap=True),
    ]
    if not causal_only:
        block = (draw(st.integers(1, 20)), draw(st.integers(1, 9)))
        choices += [
            P.Halo(size, block, draw(st.integers(0, 6))),
            P.Neighborhood(size, k, d),
            P.Neighborhood(size, k, d, border="shift"),
            P.Axial(size, axis),
        ]
    pattern = draw(st.sampled_from(choices))
    full = size[0] * size[1]
    return pattern, draw(st.sampled_from([full, max(1, full - 1), max(1, full // 2)]))


@st.composite
def on_axes(draw):
    """A line, an image or a clip, with a rule of its own for each axis."""
    count = draw(st.integers(1, 3))
    most = {1: 150, 2: 19, 3: 8}[count]

    def each(least, most):
        return tuple(draw(st.integers(least, most)) for _ in range(count))

    size, block = each(1, most), each(1, 5)
    flags = tuple(draw(st.booleans()) for _ in range(count))
    order = draw(st.sampled_from([False, True, flags]))
    stride = tuple(draw(st.integers(1, b)) for b in block)
    shift = tuple(draw(st.integers(0, s - 1)) for s in stride)
    near = {"kernel_size": block, "dilation": each(1, 3), "stride": stride, "shift": shift}
    along = draw(st.sets(st.integers(0, count - 1), min_size=1))
    choices = [
        P.Neighborhood(
            size, causal=draw(st.sampled_from([None, "raster", "corner", flags])), **near
        ),
        P.Neighborhood(size, causal=flags, border="shift", **near),
        P.Halo(size, block, each(0, 3), causal=order),
        P.Axial(size, tuple(along), order),
        P.Blocks(
            block, order, each(0, 1), size, tuple(draw(st.integers(0, b - 1)) for b in block)
        ),
    ]
    pattern = draw(st.sampled_from(choices))
    full = math.prod(size)
    return pattern, draw(st.sampled_from([full, full // size[0], max(1, full - 1), full // 2 + 1]))


@st.composite
def text_image(draw):
    pattern, length = draw(two_dimensional())
    text = draw(st.sampled_from([0, 5, 70]))
    return P.TextImage(text, pattern), draw(st.sampled_from([text + length, min(text, 3) + 1]))


@st.composite
def combined(draw):
    first, length = draw(st.one_of(one_dimensional(), two_dimensional()))
    second, _ = draw(one_dimensional())
    return draw(st.sampled_from([first | second, first & second])), length


anything = st.one_of(one_dimensional(), two_dimensional(), on_axes(), text_image(), combined())


def painted(pattern, length):
    """The plan as a matrix: how often each pair is visited unmasked, and each query placed."""
    plan = pattern.tiles(length)
    pairs = torch.zeros(plan.num_queries, plan.num_keys, dtype=torch.long)
    placed = torch.zeros(plan.num_queries, dtype=torch.long)
    for group in plan.groups:
        q, k = group.queries.index(), group.key_index()
        assert int(k.min()) >= 0
        assert int(k.max()) < plan.num_keys
        mask = torch.ones(1, q.shape[1], k.shape[1]) if group.mask is None else group.mask
        mask = mask.long().expand(len(q), -1, -1)
        at = (q[:, :, None].expand_as(mask), k[:, None, :].expand_as(mask))
        pairs.index_put_(at, mask, accumulate=True)
        placed.index_put_((q.reshape(-1),), torch.ones(q.numel(), dtype=torch.long), True)
    return pairs, placed


@settings(deadline=None, max_examples=150)
@given(anything)
def test_plan_holds_every_allowed_pair_once(case):
    """Reach equals mask: no pair is lost, visited twice or leaked, no query placed twice."""
    pattern, length = case
    pairs, placed = painted(pattern, length)
    assert torch.equal(pairs, pattern.mask(length).long())
    assert int(placed.max()) <= 1


@settings(deadline=None, max_examples=150)
@given(anything)
def test_num_pairs_counts_the_mask(case):
    """The closed form agrees with the dense mask."""
    pattern, length = case
    assert pattern.num_pairs(length) == int(pattern.mask(length).sum())


@settings(deadline=None, max_examples=80)
@given(anything)
def test_overlap_never_loses_a_pair(case):
    """`any` is False only over empty blocks, `all` True only over full ones."""
    pattern, length = case
    mask = pattern.mask(length)
    first = torch.arange(0, length, 16)
    last = (first + 15).clamp(max=length - 1)
    some, every = pattern.overlap(first[:, None], last[:, None], first[None], last[None])
    for i in range(len(first)):
        for j in range(len(first)):
            block = mask[first[i] : last[i] + 1, first[j] : last[j] + 1]
            assert bool(some[i, j]) or not bool(block.any())
            assert not bool(every[i, j]) or bool(block.all())


@settings(deadline=None, max_examples=80)
@given(anything)
def test_reads_and_keeps_follow_the_mask(case):
    """Decoding reads exactly the row of the mask; what later rows read is never forgotten."""
    pattern, length = case
    if not pattern.is_causal:
        with pytest.raises(ValueError, match="causal"):
            pattern.reads(0)
        return
    mask = pattern.mask(length)
    assert not bool(mask.triu(1).any())
    bounds = pattern.horizon()
    for position in range(0, length, 1 + length // 23):
        assert torch.equal(pattern.reads(position), mask[position].nonzero()[:, 0])
        later = mask[position + 1 :, : position + 1].any(0).nonzero()[:, 0]
        kept = torch.as_tensor(pattern.keeps(position), dtype=torch.long)
        assert set(later.tolist()) <= set(kept.tolist())
        assert bounds is None or len(kept) <= sum(bounds)


@settings(deadline=None, max_examples=60)
@given(on_axes(), st.data())
def test_a_part_of_the_queries_is_planned_alone(case, data):
    """Chunks of a clip or an image: their plan is the rows of the mask, whole rows or not."""
    pattern, length = case
    first = data.draw(st.integers(0, length))
    count = data.draw(st.integers(0, length - first))
    planned = tiling_mask(pattern._part(first, count, length))
    assert planned.equal(pattern.mask(length)[first : first + count])


@pytest.mark.parametrize(
    ("image", "pairs"),
    [
        (P.Axial(32, "row", causal=True, wrap=True), 328_304),
        (P.Axial(32, "column", causal=True, wrap=True), 311_936),
        (P.Neighborhood(32, 11, causal="raster", border="wrap"), 352_209),
    ],
)
def test_dalle_counts(image, pairs):
    """The paper's patterns at 256 text and 32 x 32 image tokens have the published counts."""
    pattern = P.TextImage(256, image)
    assert pattern.num_pairs(1280) == pairs == int(pattern.mask(1280).sum())


@settings(deadline=None, max_examples=60)
@given(
    size=st.tuples(side, side),
    block=st.sampled_from([2, 4, (4, 8), 8, 20]),
    halo=st.integers(0, 5),
    stride=st.sampled_from([2, 4]),
)
def test_strided_halo_queries_are_every_nth_pixel(size, block, halo, stride):
    """Downsampling attention keeps the neighbourhoods of the pixels that it keeps."""
    if any(b % stride for b in (block if isinstance(block, tuple) else (block,))):
        with pytest.raises(ValueError, match="divide"):
            P.Halo(size, block, halo, stride)
        return
    length = size[0] * size[1]
    strided, plain = P.Halo(size, block, halo, stride), P.Halo(size, block, halo)
    pairs, _ = painted(strided, length)
    rows = plain.mask(length).view(*size, length)[::stride, ::stride].flatten(0, 1)
    assert torch.equal(pairs, rows.long())
    assert strided.num_pairs(length) == int(rows.sum())


def test_plans_stay_small():
    """A plan holds numbers per group, not per pair: a million tokens fit in a few groups."""
    plan = P.SlidingWindow(256).tiles(1 << 20)
    assert len(plan.groups) <= 6
    assert plan.visited < 330 * (1 << 20)


@pytest.mark.parametrize(
    "build",
    [
        lambda: P.SlidingWindow(0),
        lambda: P.SlidingWindow(2.5),
        lambda: P.Blocks(4, lookback=-1),
        lambda: P.Halo((8, 0)),
        lambda: P.Halo(8, 8, -1),
        lambda: P.Neighborhood(8, 4, causal="raster", border="wrap"),
        lambda: P.Neighborhood(8, 3, causal="past"),
        lambda: P.Neighborhood(8, 3, causal="raster", border="shift"),
        lambda: P.Axial(8, "diagonal"),
        lambda: P.Axial(8, wrap=True),
        lambda: P.TextImage(-1, P.Full()),
        lambda: P.TextImage(4, "full"),
        lambda: P.Axial(4).mask(17),
        lambda: P.Axial((2, 3, 4)).mask(25),
        lambda: P.Axial((2, 3, 4), "time axis"),
        lambda: P.Axial((2, 3, 4), ("frames", 3)),
        lambda: P.Axial((2, 3, 4), ()),
        lambda: P.Axial((2, 3, 4), causal=(True, False)),
        lambda: P.Halo((2, 3, 4, 5)),
        lambda: P.Halo((4, 4, 4), (2, 2)),
        lambda: P.Halo(8, 4, 1, 2, causal=True),
        lambda: P.Neighborhood(8, 3, stride=4),
        lambda: P.Neighborhood(8, 4, stride=2, shift=2),
        lambda: P.Neighborhood((2, 3, 4), 3, causal=(True, False)),
        lambda: P.Neighborhood((2, 3, 4), 3, causal="raster", border="wrap"),
        lambda: P.Blocks((2, 2)),
        lambda: P.Blocks(4, shift=4),
        lambda: P.Blocks((2, 2), size=(4, 4, 4)),
    ],
)
def test_nonsense_is_named(build):
    """Nonsense raises a ValueError that shows the value received."""
    with pytest.raises(ValueError, match=r"got|reaches"):
        build()
