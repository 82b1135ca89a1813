"""Labels: used as the classes that they mean, or refused, never cast."""

import numpy as np
import pytest

from foveal.data.labels import as_classes


@pytest.mark.parametrize(
    ("values", "labels", "classes"),
    [
        ([2, 0, 2], [2, 0, 2], ["0", "1", "2"]),
        (np.array([1.0, 0.0]), [1, 0], ["0", "1"]),
        (np.array([[1], [0]], np.uint8), [1, 0], ["0", "1"]),
        ([True, False], [1, 0], ["0", "1"]),
        (["dog", "cat", "dog"], [1, 0, 1], ["cat", "dog"]),
        (np.array([b"b", b"a"]), [1, 0], ["a", "b"]),
        (np.eye(3)[[2, 0]], [2, 0], ["0", "1", "2"]),
        (np.array([10**9, 5, 10**9]), [1, 0, 1], ["5", "1000000000"]),
    ],
    ids=["ints", "whole floats", "column", "bools", "texts", "bytes", "one-hot", "ids"],
)
def test_what_labels_mean(values, labels, classes):
    """Each kind of label that people store gives the classes it stands for."""
    found, names, _ = as_classes(values, "x.npz")
    assert found.dtype == np.int64
    assert (found.tolist(), names) == (labels, classes)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0.5, 1.0], "whole numbers or texts.*got 0.5"),
        ([0.0, np.nan], "got nan"),
        ([np.inf, 0.0], "got inf"),
        ([0, -1], "negative"),
        ([1e300, 0.0], r"got 1e\+300"),
        (np.array([2**63 + 1], np.uint64), "too large"),
        (np.array([[0.2, 0.8], [1.0, 0.0]]), "single 1"),
        (np.array([[1, 1], [1, 0]]), "single 1"),
        (np.zeros((2, 3, 4)), "one for each example"),
        (np.int64(3), "one for each example"),
        (np.array([1j, 0]), "dtype complex"),
        (np.array(["2020-01-01"], "datetime64[D]"), "dtype datetime"),
        (["a", ""], "empty"),
        (["a", "\ud800"], "half a letter"),
    ],
)
def test_what_is_no_class_is_refused(values, words):
    """A cast would have made some class of each of them."""
    with pytest.raises(ValueError, match=rf"x\.npz.*{words}"):
        as_classes(values, "x.npz")


def test_names_bound_the_labels():
    """Numbers are below the number of names, texts among them."""
    assert as_classes([1, 0], "x", ["a", "b"])[1] == ["a", "b"]
    assert as_classes(["b", "a"], "x", ["b", "a"])[0].tolist() == [0, 1]
    with pytest.raises(ValueError, match="below the 2 classes, got 2"):
        as_classes([2], "x", ["a", "b"])
    with pytest.raises(ValueError, match="among its classes a, b, got 'c'"):
        as_classes(["c"], "x", ["a", "b"])
