"""Union and Intersection: set algebra on patterns, nested and with heads."""

import itertools

import pytest
import torch

from foveal.patterns.block_sparse import BlockSparse
from foveal.patterns.blocks import Blocks
from foveal.patterns.combine import Intersection, Union
from foveal.patterns.fixed import Fixed
from foveal.patterns.full import Full
from foveal.patterns.strided import Strided
from foveal.patterns.window import SlidingWindow
from foveal.testing import assert_pattern


def layout(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.4


PARTS = [
    Full(causal=True),
    SlidingWindow(5),
    SlidingWindow(9, causal=False),
    Blocks(6, causal=True, lookback=1),
    Strided(11),
    Fixed(8, 2, causal=False),
    BlockSparse(layout(12, 12), 9, causal=True),
    BlockSparse(layout(2, 12, 12), 9),
]


@pytest.mark.parametrize("length", [0, 1, 97])
@pytest.mark.parametrize(("a", "b"), list(itertools.combinations(PARTS, 2)))
def test_contract(a, b, length):
    """Unions and intersections of any two patterns keep every promise of a pattern."""
    assert_pattern(a | b, length)
    assert_pattern(a & b, length)


def test_masks_are_set_algebra():
    """Nested expressions mean what they say."""
    a, b, c = SlidingWindow(5), Strided(7), Blocks(10, causal=True)
    mask = ((a | b) & c).mask(50)
    assert torch.equal(mask, (a.mask(50) | b.mask(50)) & c.mask(50))
    assert_pattern((a | b) & c, 50)
    assert (a | b) | c == a | (b | c) == Union(a, b, c)
    assert hash(a & b) == hash(Intersection(a, b))


def test_causality_of_unions_and_intersections():
    """A union is causal when all parts are, an intersection when any is."""
    past, both = SlidingWindow(4), SlidingWindow(4, causal=False)
    assert (past | Strided(3)).causal
    assert not (past | both).causal
    assert (past & both).causal
    assert not Intersection(both, Blocks(4)).causal
    assert torch.equal((both & Full(causal=True)).mask(20), past.mask(20))


def test_horizons():
    """A union remembers as far as its farthest part, an intersection as its nearest."""
    near, far = SlidingWindow(4), SlidingWindow(9)
    assert (near | far).horizon() == (0, 9)
    assert (near & far).horizon() == (0, 4)
    assert (near | Strided(3)).horizon() is None
    assert (near & Strided(3)).horizon() == (0, 4)


def test_strided_queries():
    """Parts whose queries are strided alike combine; others are refused."""
    from foveal.patterns.halo import Halo

    strided = Halo((8, 12), 4, 1, query_stride=2)
    assert_pattern(strided | Halo((8, 12), 4, 0, query_stride=2), 96)
    assert_pattern(strided & Halo((8, 12), 8, 0, query_stride=2), 96)
    with pytest.raises(ValueError, match="agree in queries"):
        (strided | Halo((8, 12), 4, 1)).tiles(96)


def test_check_length_asks_every_part():
    """A length that one part cannot bear is refused."""
    pattern = SlidingWindow(3) | BlockSparse(layout(4, 4), 4)
    with pytest.raises(ValueError, match="length"):
        pattern.mask(17)


def test_errors():
    """Nothing, or something that is no pattern, is refused by name."""
    with pytest.raises(ValueError, match="Union"):
        Union()
    with pytest.raises(ValueError, match="takes patterns"):
        Intersection(SlidingWindow(3), 4)
    with pytest.raises(ValueError, match="agree in heads"):
        Union(BlockSparse(layout(2, 3, 3), 4), BlockSparse(layout(3, 3, 3), 4))
    with pytest.raises(TypeError):
        SlidingWindow(3) | 4
