"""Checks of arguments and words."""

import numpy as np
import pytest
import torch

from foveal.common.checks import as_bool, as_int, as_number
from foveal.common.words import meant, suggest


def test_ints_of_every_kind_are_ints() -> None:
    """Python's, NumPy's and torch's whole numbers pass; the result is a plain int."""
    for value in (3, np.int64(3), np.uint8(3), torch.tensor(3)):
        found = as_int("window", value, 1)
        assert type(found) is int
        assert found == 3


@pytest.mark.parametrize("value", [True, np.bool_(True), 3.0, "3", None, [3], 0, -1])
def test_what_is_no_positive_int_is_named(value: object) -> None:
    with pytest.raises(ValueError, match=r"window must be a positive int, got window="):
        as_int("window", value, 1)


def test_bools_only_are_bools() -> None:
    """Text such as "false" would count as true."""
    assert as_bool("causal", np.bool_(False)) is False
    for value in ("false", 0, 1, None, 0.0):
        with pytest.raises(ValueError, match="causal must be True or False"):
            as_bool("causal", value)


def test_numbers_are_finite_and_in_range() -> None:
    assert as_number("dropout", 0, least=0, below=1) == 0
    assert as_number("scale", np.float32(0.5)) == 0.5
    for value in (float("nan"), float("inf"), "0.1", True, 1.0, -0.1, None):
        with pytest.raises(ValueError, match="dropout must be a number at least 0 and below 1"):
            as_number("dropout", value, least=0, below=1)


def test_the_nearest_word_whatever_its_case() -> None:
    assert meant("slidingwindow", ["SlidingWindow", "Full"]) == "SlidingWindow"
    assert suggest("Ful", ["SlidingWindow", "Full"]) == "did you mean 'Full'?"
    assert suggest("zzz", ["b", "a"]) == "known: a, b."
    assert suggest("zzz", ["b", "a"], "see the list.") == "see the list."


@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_ints_beyond_all_floats_are_not_finite(value: int) -> None:
    """An int that no float holds is refused in words, as infinity is."""
    with pytest.raises(ValueError, match=r"scale must be a number, got -?1000"):
        as_number("scale", value)
