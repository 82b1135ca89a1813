"""BlockSparse: DeepSpeed's layouts to the block, and the same contract as every pattern."""

import copy
import math
import pickle
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.patterns.block_sparse import BlockSparse
from foveal.testing import assert_pattern


def picture(layout: torch.Tensor) -> str:
    return "\n".join("".join(".#"[int(on)] for on in row) for row in layout)


FIXED_ONE_WAY = """\
#.......
##......
###.....
####....
...##...
...###..
...####.
...#####"""

FIXED_BOTH_WAYS = """\
####...#.#
####...#.#
####...#.#
####...#.#
...#####.#
...#####.#
...#####.#
...#####.#
...#...###
...#...###"""

VARIABLE_ONE_WAY = """\
#.........
##........
###.......
#..#......
#..##.....
#..###....
#..####...
#....#.#..
#....#.##.
#....#.###"""


def test_golden_layouts_of_deepspeed():
    """The published layouts of Fixed and Variable are met block for block."""
    one_way = BlockSparse.fixed(8 * 16, attention="unidirectional")
    assert picture(one_way.layout) == FIXED_ONE_WAY
    assert one_way.causal
    assert picture(BlockSparse.fixed(10 * 16).layout) == FIXED_BOTH_WAYS
    variable = BlockSparse.variable(
        10 * 16,
        local_window_blocks=[1, 2, 4],
        global_block_indices=[0, 5],
        attention="unidirectional",
    )
    assert picture(variable.layout) == VARIABLE_ONE_WAY


def test_layout_of_dalle_pytorch():
    """The 'sparse' layer of DALLE-pytorch has 1,320 of 6,400 blocks before its random ones."""
    without = BlockSparse.variable(
        1280, global_block_indices=range(16), attention="unidirectional"
    )
    assert int(without.layout.sum()) == 1320
    drawn = BlockSparse.variable(
        1280, num_random_blocks=20, global_block_indices=range(16), attention="unidirectional"
    )
    assert float(drawn.layout.float().mean()) == pytest.approx(0.40, abs=0.01)


def test_fixed_quirk_blocks_above_the_diagonal():
    """Two global blocks switch on (2, 3) and (6, 7); the causal cut keeps them harmless."""
    pattern = BlockSparse.fixed(8 * 4, 4, num_global_blocks=2, attention="unidirectional")
    assert pattern.layout[2, 3]
    assert pattern.layout[6, 7]
    assert pattern.layout.triu(1).sum() == 2
    assert not pattern.mask(32).triu(1).any()


def test_horizontal_global_rows():
    """Horizontal global blocks read everything."""
    pattern = BlockSparse.fixed(8 * 16, horizontal_global_attention=True)
    assert pattern.layout[3].all()
    assert pattern.layout[7].all()
    assert not pattern.layout[2].all()


def test_random_blocks_come_from_the_seed_in_deepspeeds_order():
    """`seed=s` draws what Python's random gives DeepSpeed after `random.seed(s)`."""
    pattern = BlockSparse.variable(
        9 * 16, num_random_blocks=2, local_window_blocks=[1], global_block_indices=[], seed=7
    )
    random.seed(7)
    expected = torch.eye(9, dtype=torch.bool)
    for row in range(9):
        expected[row, random.sample(range(9), 2)] = True
    assert torch.equal(pattern.layout, expected)
    assert pattern != BlockSparse.variable(
        9 * 16, num_random_blocks=2, local_window_blocks=[1], global_block_indices=[], seed=8
    )


def test_bigbird_both_ways():
    """Window of three, first block global in row and column, one random block a row."""
    layout = BlockSparse.bigbird(8 * 16, num_random_blocks=0).layout
    row = torch.arange(8)
    expected = (row[:, None] - row).abs() <= 1
    expected[0] = expected[:, 0] = True
    assert torch.equal(layout, expected)
    past = BlockSparse.bigbird(8 * 16, attention="unidirectional")
    assert not past.layout.triu(1).any()
    extra = past.layout & ~expected
    assert int(extra.sum(1).max()) <= 1


def test_longformer_and_sliding():
    """Longformer: window with global rows and columns. Sliding: the window alone."""
    row = torch.arange(8)
    window = (row[:, None] - row).abs() <= 1
    expected = window.clone()
    expected[2:4] = expected[:, 2:4] = True
    pattern = BlockSparse.longformer(
        8 * 16, global_block_indices=[2, 99], global_block_end_indices=[4, 100]
    )
    assert torch.equal(pattern.layout, expected)
    assert torch.equal(BlockSparse.sliding(8 * 16).layout, window.tril())
    assert torch.equal(BlockSparse.sliding(8 * 16, attention="bidirectional").layout, window)


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (lambda: BlockSparse.fixed(64, num_local_blocks=4, num_global_blocks=3), "multiple"),
        (
            lambda: BlockSparse.fixed(
                64, attention="unidirectional", horizontal_global_attention=True
            ),
            "horizontal_global_attention",
        ),
        (
            lambda: BlockSparse.fixed(64, num_different_global_patterns=2),
            "different_layout_per_head",
        ),
        (
            lambda: BlockSparse.fixed(
                64, num_different_global_patterns=5, different_layout_per_head=True
            ),
            "num_different_global_patterns",
        ),
        (lambda: BlockSparse.fixed(64, attention="both"), "attention"),
        (lambda: BlockSparse.variable(64, num_random_blocks=5), "num_random_blocks"),
        (lambda: BlockSparse.variable(64, num_random_blocks=-1), "num_random_blocks"),
        (lambda: BlockSparse.variable(64, local_window_blocks=[]), "local_window_blocks"),
        (
            lambda: BlockSparse.variable(64, global_block_end_indices=[1, 2]),
            "global_block_end_indices",
        ),
        (
            lambda: BlockSparse.longformer(64, global_block_end_indices=[0]),
            "global_block_end_indices",
        ),
        (
            lambda: BlockSparse.bigbird(64, num_random_blocks=2, attention="unidirectional"),
            "num_random_blocks",
        ),
        (lambda: BlockSparse.sliding(0), "length"),
        (lambda: BlockSparse(torch.ones(2, 3), 4), "layout"),
        (lambda: BlockSparse(torch.ones(0, 3, 3), 4), "layout"),
        (lambda: BlockSparse(torch.full((2, 2), torch.nan), 4), "layout"),
        (lambda: BlockSparse(torch.full((2, 2), 0.5), 4), "layout"),
        (lambda: BlockSparse(torch.eye(2, dtype=torch.bfloat16) * -1, 4), "layout"),
        (lambda: BlockSparse([[1.0, math.inf], [0.0, 1.0]], 4), "layout"),
        (lambda: BlockSparse([[1, -1], [0, 1]], 4), "layout"),
        (lambda: BlockSparse(torch.ones(3, 3), 0), "block_size"),
        (lambda: BlockSparse(torch.ones(3, 3), 4).mask(13), "length"),
        (lambda: BlockSparse(torch.ones(3, 3), 4, True).reads(12), "length"),
        (lambda: BlockSparse(torch.ones(3, 3), 4).reads(0), "causal"),
    ],
)
def test_errors_name_the_argument(build, names):
    """Bad input raises ValueError with the argument's name."""
    with pytest.raises(ValueError, match=names):
        build()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.int64])
def test_counts_say_what_is_read(dtype):
    """Layouts that were added up are those of all of their parts."""
    parts = torch.eye(4), torch.eye(4).roll(-1, 1).tril(), torch.ones(4, 4).tril()
    assert BlockSparse(sum(parts).to(dtype), 8) == BlockSparse(parts[2].bool(), 8)


def test_heads():
    """Heads that agree are folded into one; others keep a pattern each."""
    same = BlockSparse.fixed(128, num_heads=4, different_layout_per_head=True)
    assert same.heads is None
    assert same == BlockSparse.fixed(128)
    apart = BlockSparse.fixed(
        128, num_heads=4, different_layout_per_head=True, num_different_global_patterns=4
    )
    assert apart.heads == 4
    assert apart.mask(128).shape == (4, 128, 128)
    each = apart.per_head()
    assert [torch.equal(one.mask(128), apart.mask(128)[i]) for i, one in enumerate(each)] == [
        True
    ] * 4
    with pytest.raises(ValueError, match="per_head"):
        apart.tiles(128)
    assert_pattern(apart, 100)


def test_identity_is_the_content():
    """Equality and hash follow the content; copies and pickles are equal; the repr is short."""
    layout = torch.rand(6, 6, generator=torch.Generator().manual_seed(0)) < 0.5
    one = BlockSparse(layout, 4)
    twin = BlockSparse(layout.int(), 4)
    assert one == twin
    assert hash(one) == hash(twin)
    assert one.tiles(24) is twin.tiles(24)
    assert one != BlockSparse(~layout, 4)
    assert one != BlockSparse(layout, 5)
    assert one != BlockSparse(layout, 4, causal=True)
    assert pickle.loads(pickle.dumps(one)) == one
    assert copy.deepcopy(one) == one
    assert len(repr(one)) < 80
    before = hash(one)
    layout[0] = ~layout[0]
    assert hash(one) == before
    assert torch.equal(one.layout, twin.layout)


@settings(max_examples=40, deadline=None)
@given(
    blocks=st.integers(1, 9),
    block_size=st.sampled_from([1, 3, 8, 16, 24, 40, 70]),
    density=st.floats(0, 1),
    heads=st.sampled_from([None, 1, 3]),
    causal=st.booleans(),
    short=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_contract(blocks, block_size, density, heads, causal, short, seed):
    """Every view agrees with `allows`, whatever the layout, the block and the length."""
    shape = (blocks, blocks) if heads is None else (heads, blocks, blocks)
    layout = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density
    pattern = BlockSparse(layout, block_size, causal)
    assert_pattern(pattern, min(200, int(short * blocks * block_size)))


def test_plan_merges_small_rows_and_wastes_little():
    """Rows of 16 tokens share tiles of 64; an aligned layout visits little beyond its pairs."""
    pattern = BlockSparse.fixed(2048, attention="unidirectional")
    plan = pattern.tiles(2048)
    assert all(group.tile_q == 64 for group in plan.groups)
    assert plan.visited < 1.2 * pattern.num_pairs(2048)


def test_decoding_memory_of_a_sliding_layout_is_bounded():
    """The horizon of a sliding layout is its window, so that a cache need not grow."""
    pattern = BlockSparse.sliding(16 * 100)
    assert pattern.horizon() == (0, 32)
    assert len(pattern.keeps(1500)) <= 32
    assert len(pattern.keeps(16 * 100 - 1)) == 0


@pytest.mark.parametrize("attention", ["bidirectional", "unidirectional"])
def test_bigbird_without_global_blocks(attention):
    """No block is global, as DeepSpeed allows: the window and the random blocks alone."""
    for random_blocks in (0, 1):
        pattern = BlockSparse.bigbird(
            64, 8, num_global_blocks=0, num_random_blocks=random_blocks, attention=attention
        )
        blocks = pattern.mask(64)[::8, ::8]
        near = (torch.arange(8)[:, None] - torch.arange(8)).abs() <= 1
        wanted = near.tril() if attention == "unidirectional" else near
        assert bool(blocks[wanted].all())
        assert int(blocks.sum()) <= int(wanted.sum()) + 8 * random_blocks
        if not random_blocks:
            assert torch.equal(blocks, wanted)
    with pytest.raises(ValueError, match="num_global_blocks"):
        BlockSparse.bigbird(64, 8, num_global_blocks=-1)
