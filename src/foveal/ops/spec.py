"""How a pattern passes through an opaque operator, whose arguments are text and numbers.

An eager call lends the very object that it was given: the text is a ticket that is good while the
call runs. A graph that is traced outlives its call, so it carries a description instead: the class
by its reference in `foveal.patterns.registry`, and all fields. Ints travel apart from the text, so
that sizes may be symbols while a graph is being traced.
"""

from __future__ import annotations

import ast
import base64
import dataclasses
import enum
import itertools
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from foveal.common.constant import constant_of
from foveal.common.memo import remember, untraced
from foveal.patterns import Pattern
from foveal.patterns.base import field_names
from foveal.patterns.registry import lookup

# patterns of the calls that run now
_KEPT: dict[str, Pattern] = {}
_TICKETS = itertools.count()
_TICKET = "@"


def is_tracing() -> bool:
    """Whether a graph is being recorded, which will run after the call is over."""
    return (
        torch.compiler.is_compiling()
        or torch._C._get_tracing_state() is not None
        or torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None
        or torch._ops._len_torch_dispatch_stack_pre_dispatch() > 0
    )


def lend(pattern: Pattern) -> str:
    """A ticket for which `rebuild` gives this very pattern, until `take_back`."""
    ticket = f"{_TICKET}{next(_TICKETS)}"
    _KEPT[ticket] = pattern
    return ticket


def take_back(ticket: str) -> None:
    """The call is over."""
    del _KEPT[ticket]


def is_ticket(text: str) -> bool:
    return text.startswith(_TICKET)


def rebuild(text: str, sizes: list[int]) -> Pattern:
    """The pattern of a ticket, or one equal to what `describe` was given."""
    if is_ticket(text):
        return _KEPT[text]
    return _rebuild(text, tuple(sizes))


# -- descriptions -------------------------------------------------------------------------------


def describe(pattern: Pattern) -> tuple[str, list[int]]:
    """(text, sizes) from which `rebuild` makes an equal pattern."""
    if not torch.compiler.is_compiling() and torch._C._get_tracing_state() is not None:
        with untraced():
            return describe(pattern)
    sizes: list[int] = []
    return _text(pattern, sizes), sizes


def _text(pattern: Pattern, sizes: list[int]) -> str:
    """Plain Python that the compiler can follow, for sizes may be symbols."""
    if pattern.opaque:
        return _frozen(pattern)
    names = field_names(pattern.__class__)
    plain = [_is_plain(getattr(pattern, name)) for name in names]
    if False in plain:
        return _frozen(pattern)
    fields = [f"{name!r}: {_plain(getattr(pattern, name), sizes)}" for name in names]
    return f"({pattern.__class__.reference!r}, {{{', '.join(fields)}}})"


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return False not in [_is_plain(part) for part in value]
    return isinstance(value, Pattern) or type(value) in (int, bool, str, torch.SymInt, type(None))


def _plain(value: Any, sizes: list[int]) -> str:
    if isinstance(value, Pattern):
        return _text(value, sizes)
    if isinstance(value, tuple):
        return "[" + ", ".join([_plain(part, sizes) for part in value]) + "]"
    if isinstance(value, str | bool | None):
        return repr(value)
    sizes.append(value)
    return "0"


@constant_of
def _frozen(pattern: Pattern) -> str:
    """A pattern whose fields hold more, without symbols.

    Raises:
        ValueError: it holds what no text can stand for.
    """
    text = f"{{'frozen': {_frozen_value(pattern, type(pattern).__name__)}}}"
    if _rebuild(text, ()) != pattern and not _holds_tensor(pattern):
        raise ValueError(
            f"a pattern in a compiled graph must be made of its fields, got {pattern}, which is "
            "not; call attend outside of the graph."
        )
    return text


def _frozen_value(value: Any, name: str) -> str:
    if isinstance(value, Pattern):
        fields = {
            one.name: _frozen_value(getattr(value, one.name), f"{name}.{one.name}")
            for one in dataclasses.fields(value)
            if not one.metadata.get("derived")
        }
        inside = ", ".join(f"{one!r}: {text}" for one, text in fields.items())
        return f"({type(value).reference!r}, {{{inside}}})"
    if type(value) is tuple:
        return "[" + ", ".join(_frozen_value(one, name) for one in value) + "]"
    if value is None or type(value) in (int, bool, str):
        return repr(value)
    if type(value) is float:
        return f"{{'float': {value.hex()!r}}}"
    if isinstance(value, enum.Enum) and _enum(type(value).__module__, type(value).__qualname__):
        kind = type(value)
        return f"{{'enum': [{kind.__module__!r}, {kind.__qualname__!r}, {value.name!r}]}}"
    if isinstance(value, Tensor) and value.layout == torch.strided:
        flat = value.detach().cpu().contiguous().flatten()
        content = bytes(flat.view(torch.uint8).tolist()) if flat.numel() else b""
        dtype = str(value.dtype).removeprefix("torch.")
        packed = base64.b64encode(content).decode()
        return f"{{'tensor': [{dtype!r}, {list(value.shape)}, {packed!r}]}}"
    raise ValueError(
        f"{name} must be a number, text, bool, tensor, enum of a module, pattern or a tuple of "
        f"these to be part of a compiled graph, got {type(value).__name__}."
    )


def _holds_tensor(value: Any) -> bool:
    """Whether a pattern is equal to itself alone, for tensors are."""
    if isinstance(value, tuple):
        return any(_holds_tensor(one) for one in value)
    if isinstance(value, Pattern):
        return any(_holds_tensor(getattr(value, one)) for one in field_names(type(value)))
    return isinstance(value, Tensor)


@remember(entries=1024)
def _rebuild(text: str, sizes: tuple[int, ...]) -> Pattern:
    return _value(ast.literal_eval(text), iter(sizes), False)


def _value(node: Any, sizes: Iterator[int], frozen: bool) -> Any:
    if isinstance(node, tuple):
        reference, fields = node
        return lookup(reference).from_fields(
            {name: _value(field, sizes, frozen) for name, field in fields.items()}
        )
    if isinstance(node, list):
        return tuple([_value(part, sizes, frozen) for part in node])
    if isinstance(node, dict):
        ((kind, content),) = node.items()
        return _value(content, sizes, True) if kind == "frozen" else _special(kind, content)
    return next(sizes) if type(node) is int and not frozen else node


def _special(kind: str, content: Any) -> Any:
    if kind == "float":
        return float.fromhex(content)
    if kind == "enum":
        module, name, member = content
        return _enum(module, name)[member]
    dtype, shape, packed = content
    data = torch.tensor(list(base64.b64decode(packed)), dtype=torch.uint8, device="cpu")
    return data.view(getattr(torch, dtype)).view(shape)


def _enum(module: str, name: str) -> Any:
    """The enum of that name, or None where a module has none."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, enum.EnumMeta) else None
