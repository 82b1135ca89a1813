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
    P.Neighborhood((2, 4, 6), (1, 4, 3), (1, 1, 2), (True, False, False), "shift", (1, 2, 3)),
    P.Halo((2, 4, 6), (1, 2, 2), 1, causal=(True, False, False)),
    P.Axial((2, 4, 6), ("height", "width"), (False, True, False)),
    P.Blocks((1, 2, 3), lookback=(1, 0, 0), size=(2, 4, 6), shift=(0, 1, 1)),
    P.TextImage(4, P.Axial((2, 3), causal=True)),
    P.Pyramid(4, causal=True),
    P.Shorten(3),
    P.Part(P.SlidingWindow(8), 40, 24, 33),
    P.Documents((3, 0, 5)),
    P.Prefix(3),
    P.NextScale((1, 2, (3, 4))),
    P.BlockDiffusion(4, 10),
    P.Packed(P.Blocks(3, causal=True), (3, 5), (2, 5)),
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
        ("Blocks(4, lookback='a')", "lookback must be an int"),
        ("Full(1, 2, 3)", "too many"),
        ("BlockSparse.fixd(8)", "did you mean 'fixed'"),
        ("BlockSparse.__new__(8)", "no constructor"),
        ("__import__('os').system('true')", "must begin with its name"),
        ("(lambda: 3)()", "must begin with its name"),
        ("Full(causal=open('x'))", "unknown pattern 'open'"),
        ("SlidingWindow(window=8, window=9)", "window may be given once"),
        ("Full(causal=True, causal=True)", "causal may be given once"),
        ("Blocks(4, lookback=1, causal=True, lookback=2) | Full()", "lookback may be given once"),
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
    class EveryNth(Pattern):
        step: int = 2

        def allows(self, q_idx, k_idx):
            return (q_idx - k_idx) % self.step == 0

    assert from_config(to_config(EveryNth(3))) == EveryNth(3)
    assert parse("EveryNth(step=4)") == EveryNth(4)


def test_only_patterns_become_configs():
    """Anything else is refused."""
    with pytest.raises(ValueError, match="pattern must be a Pattern"):
        to_config({"name": "Full"})


def define(module, name="Twin", rule="q_idx == k_idx"):
    """A class of that name in that module, as another package would define it."""
    from dataclasses import dataclass

    space = {"dataclass": dataclass, "Pattern": Pattern, "__name__": module}
    body = f"    step: int = 2\n    def allows(self, q_idx, k_idx):\n        return {rule}\n"
    exec(f"@dataclass(frozen=True)\nclass {name}(Pattern):\n{body}", space)
    return space[name]


def test_ambiguous_names_are_refused_and_written_in_full():
    """Two modules, one name: the name alone is refused, and each goes by its module."""
    one, other = define("first"), define("second.part")
    assert to_config(one(3)) == {"name": "first.Twin", "step": 3}
    for cls in (one, other):
        assert type(from_config(to_config(cls(3)))) is cls
        assert type(parse(f"{cls.__module__}.Twin(step=3)")) is cls
    for read, what in ((parse, "Twin(3)"), (from_config, {"name": "Twin"})):
        with pytest.raises(ValueError, match=r"first\.Twin, second\.part\.Twin"):
            read(what)


def test_our_names_stay_ours():
    """A user's class of the name of one of ours is written with its module, and ours as ever."""
    theirs = define("someone", "SlidingWindow")
    assert to_config(theirs())["name"] == "someone.SlidingWindow"
    assert type(from_config(to_config(theirs()))) is theirs
    assert type(parse("SlidingWindow(3)")) is P.SlidingWindow
    assert to_config(P.SlidingWindow(3))["name"] == "SlidingWindow"


def test_a_name_means_its_latest_definition():
    """A cell that runs again: the new class is read, and a pattern of the old one is refused."""
    old = define("notebook", "Cell")(3)
    new = define("notebook", "Cell", "q_idx >= k_idx")
    assert type(parse("Cell(3)")) is new
    with pytest.raises(ValueError, match="defined anew"):
        to_config(old)


def test_what_a_config_cannot_hold_is_refused():
    """Enums, other tensors and classes without fields have no plain form; none is lost."""
    import enum

    mode = enum.IntEnum("mode", ["FAST", "SLOW"])
    cls = define("third", "Holder")
    for value in (mode.SLOW, torch.arange(3), {"a": 1}, 1j):
        with pytest.raises(ValueError, match="must be plain"):
            to_config(cls(value))

    class Bare(Pattern):
        def __init__(self, window):
            object.__setattr__(self, "window", window)

        def allows(self, q_idx, k_idx):
            return (q_idx - k_idx).abs() < self.window

    with pytest.raises(ValueError, match="dataclass"):
        to_config(Bare(3))


DEEP = "TextImage(1, " * 3000 + "Full()" + ")" * 3000


@pytest.mark.parametrize(
    "text",
    [
        DEEP,
        "-" * 5000 + "1",
        "(" * 400 + ")" * 400,
        "SlidingWindow(1" + "0" * 5000 + ")",
        "SlidingWindow(0x" + "f" * 9000 + ")",
        "SlidingWindow(1e400)",
        "SlidingWindow(99999999999999999999)",
        "Halo((3, 99999999999))",
        "BlockSparse.fixed(99999999999999)",
        "BlockSparse.bigbird(2147483647, 1)",
        "BlockSparse((1, 2), 4)",
        "SlidingWindow(\0)",
        "Full(causal='false')",
        "Pattern.from_fields(())",
        "SlidingWindow.from_fields(())",
    ],
    ids=lambda text: text[:30].replace("\0", "0"),
)
def test_absurd_text_is_one_short_error(text):
    """Depth, size and odd characters: a ValueError of one line that a terminal shows."""
    with pytest.raises(ValueError, match=r"\w") as error:
        parse(text)
    assert len(str(error.value)) < 1500
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "layout",
    [
        {"shape": [10**12, 10**12], "bits": "gA=="},
        {"shape": [2**31, 0], "bits": ""},
        {"shape": [-1, -1], "bits": "gA=="},
        {"shape": "ab", "bits": "gA=="},
        {"shape": [1.0, 1.0], "bits": "gA=="},
        {"shape": [1, 1], "bits": "?"},
        {"shape": [1, 1], "bits": 3},
        {"bits": "gA=="},
        {"shape": [1, 1], "bits": "gA==", "more": 1},
    ],
    ids=repr,
)
def test_bad_layouts_are_refused(layout):
    """Shapes and bits that make no layout are a ValueError."""
    with pytest.raises(ValueError, match=r"\w"):
        from_config({"name": "BlockSparse", "layout": layout, "block_size": 2})


def test_deep_configs_are_refused():
    """Nesting without end is a ValueError, not a RecursionError."""
    config = {"name": "Full"}
    for _ in range(5000):
        config = {"name": "TextImage", "text_length": 1, "image_pattern": config}
    with pytest.raises(ValueError, match="nested"):
        from_config(config)
