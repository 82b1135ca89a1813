"""assert_pattern: a pattern that breaks a promise is caught, and the promise is named."""

from dataclasses import dataclass

import pytest
import torch

from foveal.patterns.base import Pattern
from foveal.patterns.window import SlidingWindow
from foveal.testing import assert_pattern


@dataclass(frozen=True)
class EveryOther(Pattern):
    """The least a pattern must be: its definition."""

    causal: bool = True

    def allows(self, q_idx, k_idx):
        return (k_idx <= q_idx) & ((q_idx - k_idx) % 2 == 0)


@dataclass(frozen=True)
class Miscounted(SlidingWindow):
    def num_pairs(self, length):
        return super().num_pairs(length) + 1


@dataclass(frozen=True)
class Forgetful(SlidingWindow):
    def keeps(self, position):
        return range(position, position + 1)


@dataclass(frozen=True)
class ShortHorizon(SlidingWindow):
    def horizon(self):
        return (0, self.window - 1)

    def keeps(self, position):
        return range(position + 1)


@dataclass(frozen=True)
class Misread(SlidingWindow):
    def reads(self, position):
        return torch.arange(position + 1)


@dataclass(frozen=True)
class Blind(SlidingWindow):
    def overlap(self, q_first, q_last, k_first, k_last):
        _, every = super().overlap(q_first, q_last, k_first, k_last)
        return every, every


@dataclass(frozen=True)
class WrongPlan(SlidingWindow):
    def num_pairs(self, length):
        return int(self.mask(length).sum())

    def _tiles(self, length):
        return SlidingWindow(self.window + 1)._tiles(length)


@dataclass(frozen=True)
class SeesTheFuture(SlidingWindow):
    causal: bool = True

    def allows(self, q_idx, k_idx):
        return (q_idx - k_idx).abs() < self.window

    def num_pairs(self, length):
        return int(self.mask(length).sum())

    def overlap(self, q_first, q_last, k_first, k_last):
        return Pattern.overlap(self, q_first, q_last, k_first, k_last)

    def _tiles(self, length):
        return SlidingWindow(self.window, causal=False)._tiles(length)


@pytest.mark.parametrize("length", [0, 1, 2, 63, 64, 65, 130])
def test_defaults_make_a_whole_pattern(length):
    """A pattern that defines nothing but `allows` keeps every promise."""
    assert_pattern(EveryOther(), length)


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        (Miscounted(5), "num_pairs says"),
        (Forgetful(5), "forgets"),
        (ShortHorizon(5), "horizon misses"),
        (Misread(5), r"reads\("),
        (Blind(5), "overlap: any is False"),
        (WrongPlan(5), "tiles leak"),
        (SeesTheFuture(5), "reads a later key"),
    ],
)
def test_broken_promises_are_named(pattern, says):
    """Each view that disagrees with `allows` is caught by name."""
    with pytest.raises(AssertionError, match=says):
        assert_pattern(pattern, 40)


@dataclass(frozen=True)
class RightAtOneLength(SlidingWindow):
    """Its count holds at 64 tokens, and its plan from there on."""

    def num_pairs(self, length):
        return SlidingWindow(self.window).num_pairs(64)


@dataclass(frozen=True)
class PlanForEvenLengths(SlidingWindow):
    def _tiles(self, length):
        return SlidingWindow(self.window + length % 2)._tiles(length)


@pytest.mark.parametrize("pattern", [RightAtOneLength(5), PlanForEvenLengths(3)], ids=repr)
def test_a_form_that_holds_at_one_length_only_is_found(pattern):
    """Counts and plans are compared at shorter lengths too."""
    with pytest.raises(AssertionError):
        assert_pattern(pattern, 64)
