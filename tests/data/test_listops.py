"""ListOps: seeded, distinct, of the benchmark's distribution, with right values."""

import itertools

import numpy as np
import pytest

from foveal.data import listops


def test_same_seed_same_expressions():
    """A seed decides; fewer are a prefix of more; another seed draws others."""
    few, many = list(listops.generate(5, seed=3)), list(listops.generate(9, seed=3))
    for (a, x), (b, y) in zip(few, many, strict=False):
        assert np.array_equal(a, b)
        assert x == y
    assert not np.array_equal(few[0][0], next(listops.generate(1, seed=4))[0])


def test_values_and_lengths():
    """Each expression has the value that its text evaluates to, and an allowed length."""
    made = list(listops.generate(60))
    assert len({tokens.tobytes() for tokens, _ in made}) == 60
    for tokens, value in made:
        assert 500 < len(tokens) < 2000
        assert listops.evaluate(listops.to_text(tokens)) == value
    assert 800 < np.mean([len(tokens) for tokens, _ in made]) < 1300
    assert len({value for _, value in made}) > 5


def test_known_values():
    """The four operators, nested; a median of two middle values is rounded down."""
    for text, value in (
        ("[MAX 4 3 [MIN 2 3 ] 1 0 ]", 4),
        ("[SM 9 8 7 ]", 4),
        ("[MED 1 2 ]", 1),
        ("[MED 7 1 2 ]", 2),
        ("[MED 3 8 1 6 ]", 4),
        ("7", 7),
    ):
        assert listops.evaluate(text) == value
    for text in ("[MAX 4", "4 ]", "[MAX ]", "1 2", "[SUM 1 2 ]", ""):
        with pytest.raises(ValueError, match=r"expression|symbol"):
            listops.evaluate(text)


def test_shapes_of_small_expressions():
    """Limits of depth, arguments and length are kept."""
    for tokens, _ in listops.generate(50, 0, 4, 40, max_depth=3, max_args=3):
        assert 4 < len(tokens) < 40
        depth, deepest, counts = 0, 0, [0]
        for token in tokens:
            if token == 15:
                assert 2 <= counts.pop() <= 3
                depth -= 1
                continue
            counts[-1] += 1
            if token > 10:
                depth += 1
                counts.append(0)
            deepest = max(deepest, depth)
        assert deepest <= 2
    with pytest.raises(ValueError, match="max_args=1"):
        next(listops.generate(1, max_args=1))


def test_share_of_kept_draws():
    """The generator stops with what was asked for."""
    assert len(list(itertools.islice(listops.generate(3), 9))) == 3
