"""Command-line options from dataclasses, by tyro; mistakes become one line of plain English."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import os
import re
import shutil
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import tyro

from foveal.common.inputs import require_place
from foveal.common.words import meant

OptionsT = TypeVar("OptionsT")
_LEAST_COLUMNS = 20


def parse(
    options: type[OptionsT], arguments: Sequence[str], command: str, *, pairs: bool = False
) -> OptionsT:
    """Parse a command line; `--help` prints and exits with 0.

    Args:
        pairs: also give each flag a `--no-` form.

    Raises:
        ValueError: an unknown option or an unreadable value, in one line.
    """
    said = io.StringIO()
    # classes that are made here have no source: to look for it takes most of the time
    config: tuple[Any, ...] = (tyro.conf.HelptextFromCommentsOff,)
    if not pairs:
        config += (tyro.conf.FlagCreatePairsOff,)
    try:
        with contextlib.redirect_stderr(said), _wide_enough():
            read = plain(options)
            return tyro.cli(
                read,
                args=list(arguments),
                prog=f"foveal {command}",
                config=config,
            )
    except SystemExit as exit_:
        if not exit_.code:
            raise
    message = _one_line(said.getvalue())
    raise ValueError(f"{message} (foveal {command} --help explains the options)")


@contextlib.contextmanager
def _wide_enough() -> Iterator[None]:
    """As if the terminal had some columns: in three of them tyro's help never ends."""
    before = os.environ.get("COLUMNS")
    if shutil.get_terminal_size().columns < _LEAST_COLUMNS:
        os.environ["COLUMNS"] = str(_LEAST_COLUMNS)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("COLUMNS", None)
        else:
            os.environ["COLUMNS"] = before


def _one_line(box: str) -> str:
    """The gist of tyro's framed message, with the nearest option that it knows."""
    plain = re.sub(r"\x1b\[[0-9;]*m|[\u2500-\u257f]+|-{3,}", " ", box)
    words = " ".join(" ".join(line.strip(" |+") for line in plain.splitlines()).split())
    gist = re.split(
        r" Perhaps you meant| Arguments? similar to| Argument helptext| For full", words
    )[0]
    for pattern, say in _MESSAGES:
        if found := re.search(pattern, gist, re.DOTALL):
            return say(found, words)
    return gist


def _unknown(found: re.Match[str], words: str) -> str:
    first = re.split(r",(?: |$)", found[1])[0]  # an empty word leaves a comma or nothing
    if not first.startswith("-"):
        return f"{first!r} is one word too many"
    known = set(re.findall(r"--[\w.-]+", words[found.end() :])) - {first, "--help"}
    near = meant(first, known)
    return f"unknown option {first}" + (f"; did you mean {near}?" if near else "")


def _not_a_choice(found: re.Match[str], words: str) -> str:
    choices = re.findall(r"'([^']*)'", found[3])
    near = meant(found[1], choices)
    hint = f"; did you mean {near}?" if near else ""
    return f"{found[2]} must be {' or '.join(choices)}, got {found[1]!r}{hint}"


_MESSAGES: tuple[tuple[str, Callable[[re.Match[str], str], str]], ...] = (
    (r"Unrecognized (?:or misplaced )?options: ?(.*)", _unknown),
    (r"invalid choice '(.*?)' for argument '(.*?)'. Expected one of \((.*)\)", _not_a_choice),
    (r"Missing value for argument '(.*?)'", lambda found, _: f"{found[1]} needs a value"),
    (r"Error parsing (\S+): (.*)", lambda found, _: f"{found[1]} {found[2].strip()}"),
    (
        r"Missing from [^:]*: ([A-Z]\w*) (.*?)\.? ?\(required\)",
        lambda found, _: f"{found[1]} is missing: {found[2]}",
    ),
    (r"Missing from [^:]*: (--\S+)", lambda found, _: f"{found[1]} is missing"),
)


# -- how values are read --------------------------------------------------------------------------


def plain(
    options: type[OptionsT], values: Any = None, aliases: Mapping[str, str] | None = None
) -> type[OptionsT]:
    """A dataclass of options again, with values that are read and shown in plain words.

    Args:
        values: an instance whose values are the defaults; the dataclass's own unless given.
        aliases: field -> a short name for it.
    """
    hints = get_type_hints(options, include_extras=True)
    fields: list[Any] = []
    for item in dataclasses.fields(cast(Any, options)):
        hint = _readable(item.name, hints[item.name])
        if aliases and item.name in aliases:
            hint = Annotated[hint, tyro.conf.arg(aliases=[aliases[item.name]])]
        given: dict[str, Any] = {"default": item.default, "default_factory": item.default_factory}
        if values is not None:
            given = {"default": getattr(values, item.name)}
        if given["default"] == "":  # which shows as (default: '')
            hint = Annotated[hint, tyro.conf.arg(help_behavior_hint="")]
        own: Any = dataclasses.field(**given)
        fields.append((item.name, hint, own))
    made = dataclasses.make_dataclass(options.__name__, fields, kw_only=True)
    made.__doc__ = options.__doc__
    return cast("type[OptionsT]", made)


def _readable(name: str, hint: Any) -> Any:
    """A hint with our reading of numbers and texts, and its positional name in capitals."""
    marks = getattr(hint, "__metadata__", ())
    inner = get_args(hint)[0] if marks else hint
    optional = get_origin(inner) in (Union, types.UnionType) and type(None) in get_args(inner)
    kind = (
        next((one for one in get_args(inner) if one is not type(None)), inner)
        if optional
        else inner
    )
    if tyro.conf.Positional in marks:
        is_tuple = get_origin(kind) is tuple
        shown = f"{name.upper().removesuffix('S')} ..." if is_tuple else name.upper()
        quiet = "" if is_tuple else None
        return Annotated[hint, tyro.conf.arg(metavar=shown, help_behavior_hint=quiet)]
    if kind in _READERS and not any(isinstance(m, _Spec) for m in marks):
        hint = Annotated[(hint, _spec(kind, optional))]
    elif get_origin(kind) is tuple:
        hint = Annotated[hint, tyro.conf.arg(metavar="NAME ...")]
    elif get_origin(kind) is not Literal:
        return hint
    # "unless given" in the help says more than "default: None"
    return Annotated[hint, tyro.conf.arg(help_behavior_hint="")] if optional else hint


_Spec = tyro.constructors.PrimitiveConstructorSpec


def _spec(kind: type, optional: bool) -> _Spec[Any]:
    metavar, read = _READERS[kind]
    return _Spec(
        nargs=1,
        metavar=metavar,
        instance_from_str=partial(_read, read, optional),
        is_instance=lambda value: True,
        str_from_instance=lambda value: [str(value)],
    )


def _read(read: Callable[[str], Any], optional: bool, words: list[str]) -> Any:
    return None if optional and words[0].lower() == "none" else read(words[0])


def _whole(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise ValueError(f"must be a whole number, got {text!r}") from None
    if abs(value) >= 1 << 63:
        raise ValueError(f"must be a number of at most 18 digits, got {text!r}")
    return value


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"must be a number, got {text!r}")
    return value


_READERS: dict[type, tuple[str, Callable[[str], Any]]] = {
    int: ("INT", _whole),
    float: ("NUMBER", _number),
    str: ("TEXT", str),
    Path: ("PATH", Path),
}


def check_output(path: Path, endings: tuple[str, ...] = (".png", "")) -> Path:
    """A path that a picture, or whatever else has these endings, can be written to.

    Raises:
        ValueError: it has another ending.
        OSError: see `require_place`.
    """
    if path.suffix.lower() not in endings:
        raise ValueError(f"output must end in {endings[0]}, got output={str(path)!r}.")
    return require_place(path, "output")
