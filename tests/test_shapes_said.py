"""The docstrings of the public surface say the shape of every tensor."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

ROOMS = ("patterns", "ops", "caches", "layers", "generation", "models", "testing", "data", "draw")
SKIPPED = {
    "foveal.ops.triton.kernels",  # runs on a GPU alone
    # the inside of a call, where tensors have the shapes that `attend` says
    *(
        f"foveal.ops.{name}"
        for name in ("checks", "define", "formula", "fused", "glance", "known")
    ),
    *(f"foveal.ops.{name}" for name in ("operator", "tiled", "work")),
    # what a step written in C++ points to
    "foveal.layers.native_step",
}

SHAPE = re.compile(
    r"\((?:[\w.*/+ -]+,)+[\w.*/+ -]*\)"  # (batch, tokens, dim)
    r"|\([\w.*/+-]*\)"  # (batch), ()
    r"|-> same|any shape|sizes, dtype|scalar|as in|as for|as `|of the same shapes?|broadcast"
)
"""A shape, or where it is said."""


def public() -> Iterator[tuple[str, Callable[..., Any], str]]:
    """(name, function, docstring) of functions and methods without an underscore."""
    for module in modules():
        for name, found in vars(module).items():
            if name.startswith("_") or getattr(found, "__module__", "") != module.__name__:
                continue
            if inspect.isclass(found):
                yield from methods(found)
            elif inspect.isfunction(inspect.unwrap(found)):
                yield f"{module.__name__}.{name}", inspect.unwrap(found), found.__doc__ or ""


def modules() -> Iterator[ModuleType]:
    for room in ROOMS:
        package = importlib.import_module(f"foveal.{room}")
        yield package
        for one in pkgutil.walk_packages(package.__path__, f"foveal.{room}."):
            if one.name not in SKIPPED and "._" not in one.name:
                yield importlib.import_module(one.name)


def methods(cls: type) -> Iterator[tuple[str, Callable[..., Any], str]]:
    for name, member in vars(cls).items():
        function = inspect.unwrap(getattr(member, "__func__", member))
        if inspect.isfunction(function) and (name == "__init__" or name[0] != "_"):
            # one without words of its own has those of what it overrides
            said = inspect.getdoc(cls if name == "__init__" else getattr(cls, name))
            yield f"{cls.__module__}.{cls.__qualname__}.{name}", function, said or ""


def entry(said: str, name: str) -> str | None:
    """What a docstring says of an argument: its entry, or the text before all entries."""
    lines = inspect.cleandoc(said).splitlines()
    start = re.compile(rf"^\s*(?:\w+, )*{name}(?:, \w+)*(?: \(.*\))?: ")
    for at, line in enumerate(lines):
        if start.match(line):
            indent = len(line) - len(line.lstrip())
            rest = lines[at + 1 :]
            more = [x for x in rest if x.strip() and len(x) - len(x.lstrip()) <= indent]
            return "\n".join([line, *rest[: rest.index(more[0]) if more else None]])
    return None


def silent() -> list[str]:
    """Tensor arguments whose docstring gives no shape."""
    found = []
    for name, function, said in public():
        for one in inspect.signature(function).parameters.values():
            if "Tensor" not in str(one.annotation) or "Callable" in str(one.annotation):
                continue
            text = entry(said, one.name)
            before = re.split(r"\n\s*(?:Args|Returns|Raises):", said)[0]
            if not SHAPE.search(text if text is not None else before):
                found.append(f"{name}({one.name})")
    return found


def test_every_tensor_has_its_shape():
    """A shape in parentheses in the argument's entry, or in the text where there are none."""
    assert silent() == []


def test_silence_is_found():
    """The check itself tells a shape from none."""
    assert SHAPE.search(entry("Args:\n    x: (batch, dim) float.\n    y: numbers.", "x"))
    assert not SHAPE.search(entry("Args:\n    x: (batch, dim) float.\n    y: numbers.", "y"))
    assert "second" in entry("Args:\n    k, v: first\n        second.\n    q: third.", "v")
