"""Arguments are read by their annotations, in every constructor alike."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from typing import Any, Literal

import numpy as np
import pytest
from torch import nn

from foveal import layers
from foveal import patterns as P
from foveal.common.arguments import checked, read
from foveal.layers import FeedForward, HaloAttention, SelfAttention
from foveal.models import SepViT
from foveal.models.registry import _families

# whatever was imported before: the compact SepViT registers when it is named; plugs are no part
CONFIGS = {
    name: cls.config_class
    for name, cls in sorted((_families | {SepViT.family: SepViT}).items())
    if not cls.__module__.startswith("foveal.integrations")
}


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (int, np.int16(3), 3),
        (float, np.float32(0.5), 0.5),
        (bool, np.bool_(True), True),
        (int | None, None, None),
        (int | tuple[int, int], [4, np.int64(5)], (4, 5)),
        (tuple[int, ...], np.arange(3), (0, 1, 2)),
        (tuple[tuple[int, ...], ...], [[1], [2, 3]], ((1,), (2, 3))),
        (bool | str, "shared", "shared"),
        (Literal["sum", "split"] | None, "sum", "sum"),
        (Any, "whatever", "whatever"),
    ],
)
def test_values_that_fit(hint, value, expected):
    """Numbers of NumPy become Python's, lists become tuples."""
    found = read("x", value, hint)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("hint", "value", "message"),
    [
        (bool, "false", "x must be True or False, got x='false'"),
        (bool, 1, "True or False"),
        (int, True, "an int"),
        (int, 2.0, "an int"),
        (int | None, "3", "an int"),
        (float, "0.1", "a number"),
        (float, float("nan"), "a number"),
        (float, float("inf"), "a number"),
        (int | tuple[int, int], (1, 2, 3), "an int or a pair of ints"),
        (tuple[int, ...], "123", "a list of ints"),
        (tuple[int, ...], (1, 2.5), r"x\[1\] must be an int"),
        (Literal["sum", "split"], "spilt", "did you mean 'split'"),
        (P.Pattern, "Full()", "a Pattern"),
    ],
)
def test_values_that_do_not_fit(hint, value, message):
    """What is something else is refused, with the name and the value."""
    with pytest.raises(ValueError, match=message):
        read("x", value, hint)


def fields(kind: type) -> list[tuple[str, type]]:
    """(family, field) of every field of a type."""
    return [
        (name, field.name)
        for name, config in CONFIGS.items()
        for field in dataclasses.fields(config)
        if typing.get_type_hints(config)[field.name] is kind
    ]


@pytest.mark.parametrize(("family", "field"), fields(bool))
def test_no_text_for_a_bool(family, field):
    """No model takes text or a number for a bool; "false" would count as true."""
    for wrong in ("false", 1):
        with pytest.raises(ValueError, match=f"{field} must be True or False"):
            CONFIGS[family](**{field: wrong})
        with pytest.raises(ValueError, match=f"{field} must be True or False"):
            CONFIGS[family].from_json({field: wrong})


@pytest.mark.parametrize(("family", "field"), fields(int))
def test_counts_are_ints(family, field):
    """No model takes a float, text or a bool for a count; those of NumPy are welcome."""
    default = getattr(CONFIGS[family](), field)
    for wrong in (2.5, "2", True, None):
        with pytest.raises(ValueError, match=f"{field} must be"):
            CONFIGS[family](**{field: wrong})
    with pytest.raises(ValueError, match=f"{field} must"):
        CONFIGS[family](**{field: -1})
    assert CONFIGS[family](**{field: np.int64(default)}) == CONFIGS[family]()


LAYERS = [getattr(layers, name) for name in layers.__all__]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.__name__)
def test_every_layer_reads_its_arguments(layer: type[nn.Module]):
    """Bools of every layer are bools."""
    hints = typing.get_type_hints(inspect.unwrap(layer.__init__))
    signature = inspect.signature(layer)
    needed = {
        name: 8
        for name, one in signature.parameters.items()
        if one.default is one.empty and hints.get(name) is int
    }
    for name in (name for name, hint in hints.items() if hint is bool):
        others = {
            key: P.Full() for key, one in hints.items() if one is P.Pattern and key not in needed
        }
        rest = {key: 4 for key in ("block_size", "halo_size") if key in signature.parameters}
        rest |= {"patterns": [P.Full()]} if "patterns" in hints else {}
        rest |= {"blocks": [], "norm": nn.Identity()} if "blocks" in hints else {}
        with pytest.raises(ValueError, match=f"{name} must be True or False"):
            layer(**{**others, **needed, **rest, name: "no"})


def test_numbers_of_numpy_in_layers():
    """Layers of NumPy's ints are the layers of Python's."""
    eight, two = np.int64(8), np.int32(2)
    assert SelfAttention(eight, P.Full(), two, two).heads == 2
    assert HaloAttention(eight, (two, two), two, dim_head=two).block_size == (2, 2)
    assert FeedForward(eight, np.float32(1.5)).to_hidden.out_features == 12


def test_the_signature_stays():
    """A checked function looks like itself, and Python's own errors stay."""

    @checked
    def f(size: int, *more: int, flag: bool = False, **rest: Any) -> tuple[Any, ...]:
        """Docs."""
        return size, more, flag, rest

    assert f.__doc__ == "Docs."
    assert list(inspect.signature(f).parameters) == ["size", "more", "flag", "rest"]
    assert f(1, 2, flag=True, x="y") == (1, (2,), True, {"x": "y"})
    with pytest.raises(TypeError):
        f()
