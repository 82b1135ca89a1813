"""Patterns as JSON and as text: both ways, and safe."""

import json

import pytest
import torch

from foveal import patterns as P
from foveal.patterns.base import Pattern
from foveal.patterns.block_sparse import BlockSparse
from foveal.patterns.combine import Intersection, Union
from foveal.patterns.fixed import Fixed
from foveal.patterns.serialize import from_config, known_patterns, parse, to_config
from foveal.patterns.strided import Strided

EXAMPLES = [
    P.Full(),
    P.SlidingWindow(8),
    P.Blocks(3, causal=True, lookback=2),
    P.Halo((4, 6), block_size=2, halo_size=1),
    P.Neighborhood((4, 6), 3, causal="raster"),
    P.Axial(5, "column", causal=True),
    P.TextImage(4, P.Axial((2, 3), causal=True)),
    P.Pyramid(4, causal=True),
    P.Shorten(3),
    Strided(4, causal=False),
    Fixed(4, 2),
    BlockSparse(torch.eye(5), 3),
    BlockSparse(torch.arange(147).reshape(3, 7, 7) % 5 < 2, 16, causal=True),
    Union(P.SlidingWindow(3), Intersection(Strided(4), BlockSparse.sliding(50, 8))),
    Intersection(P.Blocks(4), P.SlidingWindow(3)),
]


@pytest.mark.parametrize("pattern", EXAMPLES, ids=repr)
def test_json_there_and_back(pattern):
    """JSON holds a pattern without loss."""
    text = json.dumps(to_config(pattern))
    assert from_config(json.loads(text)) == pattern


def test_every_pattern_of_the_package_is_covered():
    """A pattern added to the package must be added to these examples."""
    ours = {n for n, cls in known_patterns().items() if cls.__module__.startswith("foveal.")}
    assert ours == {type(pattern).__name__ for pattern in EXAMPLES}


def test_plain_form_is_small_and_readable():
    """Names and fields as they are written; layouts in bits."""
    assert to_config(P.SlidingWindow(8)) == {"name": "SlidingWindow", "window": 8, "causal": True}
    assert to_config(BlockSparse(torch.ones(1, 1), 3))["layout"] == {
        "shape": [1, 1],
        "bits": "gA==",
    }


@pytest.mark.parametrize(
    "pattern", [p for p in EXAMPLES if "BlockSparse" not in repr(p)], ids=repr
)
def test_repr_can_be_parsed(pattern):
    """What a pattern prints is what one may type."""
    assert parse(repr(pattern)) == pattern


def test_text_forms():
    """Positional and named arguments, constructors, operators, negative numbers refused inside."""
    assert parse(" SlidingWindow(8) ") == P.SlidingWindow(8)
    assert parse("BlockSparse.bigbird(128, 8, seed=3)") == BlockSparse.bigbird(128, 8, seed=3)
    assert parse("SlidingWindow(3) | Strided(4) & Full(causal=True)") == P.SlidingWindow(3) | (
        Strided(4) & P.Full(causal=True)
    )
    assert parse("Halo(size=(4, 6), block_size=2)") == P.Halo((4, 6), block_size=2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("SlidingWindo(8)", "did you mean 'SlidingWindow'"),
        ("slidingwindow(8)", "did you mean 'SlidingWindow'"),
        ("SlidingWindow(windw=8)", "did you mean 'window'"),
        ("SlidingWindow()", "window"),
        ("SlidingWindow(-1)", "window"),
        ("Blocks(4, lookback='a')", "Blocks"),
        ("Full(1, 2, 3)", "too many"),
        ("BlockSparse.fixd(8)", "did you mean 'fixed'"),
        ("BlockSparse.__new__(8)", "no constructor"),
        ("__import__('os').system('true')", "must begin with its name"),
        ("(lambda: 3)()", "must begin with its name"),
        ("Full(causal=open('x'))", "unknown pattern 'open'"),
        ("Full(*(1,))", "may not stand"),
        ("Full(**{})", "may not stand"),
        ("SlidingWindow(2 ** 99)", "only pattern names"),
        ("Full() | 3", "only pattern names"),
        ("Full", "only pattern names"),
        ("Full(", "must read like"),
        ("", "must read like"),
        ("3", "must read like"),
    ],
)
def test_bad_text_is_refused_and_never_executed(text, says):
    """One ValueError that says what is wrong, and the nearest name."""
    with pytest.raises(ValueError, match=says):
        parse(text)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"name": "Ful"}, "did you mean 'Full'"),
        ({"name": "Full", "causl": True}, "did you mean 'causal'"),
        ({"name": "SlidingWindow"}, "window"),
        ({"causal": True}, "'name'"),
        ("Full", "'name'"),
        ({"name": "Union", "parts": [3]}, "takes patterns"),
        (
            {"name": "BlockSparse", "block_size": 2, "layout": {"shape": [9, 9], "bits": "gA=="}},
            "bytes",
        ),
    ],
)
def test_bad_configs_are_refused(config, says):
    """One ValueError that says what is wrong, and the nearest name."""
    with pytest.raises(ValueError, match=says):
        from_config(config)


def test_patterns_of_others_are_known():
    """A subclass of Pattern defined anywhere can be written and read."""
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class EveryOther(Pattern):
        step: int = 2

        def allows(self, q_idx, k_idx):
            return (q_idx - k_idx) % self.step == 0

    assert from_config(to_config(EveryOther(3))) == EveryOther(3)
    assert parse("EveryOther(step=4)") == EveryOther(4)


def test_only_patterns_become_configs():
    """Anything else is refused."""
    with pytest.raises(ValueError, match="pattern must be a Pattern"):
        to_config({"name": "Full"})
