"""A pattern that is made for a row of one length says which, through whatever it is put into."""

from __future__ import annotations

import pytest
import torch

from foveal import patterns as P
from foveal.patterns.gathered import Gathered
from foveal.patterns.part import Part

LAYOUT = torch.rand(2, 5, 5, generator=torch.Generator().manual_seed(0)) < 0.5
IMAGE = P.Axial((4, 6), causal=True)

CASES = [
    (P.SlidingWindow(3) | P.Full() | P.Prefix(4), None),
    (P.Pyramid(4), None),
    (P.Blocks(8), None),
    (P.Blocks((2, 3), size=(4, 7)), 28),
    (P.Halo((4, 8), 4, 1, query_stride=2), 32),  # of its keys, which are more than its queries
    (P.Neighborhood((3, 4, 5), 3), 60),
    (P.Documents((7, 0, 3)), 10),
    (P.Documents(()), 0),
    (P.Packed(P.Full(), (4, 5)), 9),
    (P.NextScale((1, 2, (2, 3))), 11),
    (P.BlockDiffusion(4, 10), 20),
    (P.TextImage(11, IMAGE), 35),
    (P.TextImage(11, P.SlidingWindow(3)), None),
    (P.BlockSparse(LAYOUT, 8), 40),
    (P.BlockSparse(LAYOUT, 8).per_head()[1], 40),
    (Part(IMAGE, 20, 4, skipped=10), 14),
    (Part(P.SlidingWindow(3), 20, 4, skipped=10), None),
    (Gathered(IMAGE, 3, 4, ((0, 5), (9, 12)), 24), 8),
    # together: what all parts take
    (P.SlidingWindow(3) | P.BlockSparse(LAYOUT, 80), 400),
    (P.BlockSparse(LAYOUT[0], 8) | P.BlockSparse(LAYOUT[1], 4), 20),
    (P.Documents((7, 3)) & IMAGE, 24),  # what follows the documents is padding
    (P.Packed(P.Full(), (7, 3)) & IMAGE, 10),  # nothing follows
    (P.Documents((30, 30)) & IMAGE, None),  # no row at all
]


@pytest.mark.parametrize(("pattern", "length"), CASES, ids=[str(one)[:40] for one, _ in CASES])
def test_what_each_says(pattern: P.Pattern, length: int | None) -> None:
    """The length, which the pattern itself must take."""
    assert pattern.natural_length == length
    if length is not None:
        pattern.check_length(length)


def test_a_pattern_of_somebody_else_needs_no_length() -> None:
    """It is a property with an answer for every pattern, and one that a class may give."""

    class Odd(P.Pattern):
        def allows(self, q_idx: torch.Tensor, k_idx: torch.Tensor) -> torch.Tensor:
            return (q_idx - k_idx) % 2 == 1

    class Fixed(Odd):
        @property
        def natural_length(self) -> int:
            return 12

    assert Odd().natural_length is None
    assert (Fixed() & P.SlidingWindow(3)).natural_length == 12
    assert P.TextImage(3, Fixed()).natural_length == 15
