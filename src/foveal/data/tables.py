"""Tables as people keep them: .csv, .tsv, .jsonl, .json and .parquet, row by row."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from foveal.common.inputs import require_file
from foveal.common.words import suggest
from foveal.data.text_files import is_whole, lines, read_text, unpacked_name
from foveal.data.walk import printable

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
"""Suffixes of tables; all but .parquet may be packed too."""

_DELIMITERS = ",;\t|"
_BATCH = 1024

Row = dict[str, Any]


class BadRowError(ValueError):
    """A row that does not fit its table; says which."""


def is_table(path: Path, *, json_too: bool = False) -> bool:
    """Whether a file is a table, as its suffix says; .json is one only where that is meant."""
    suffix = unpacked_name(path).suffix.lower()
    return suffix in TABLES and (json_too or suffix != ".json")


def read_rows(path: Path, columns: Sequence[str] = ()) -> Iterator[tuple[str, Row | BadRowError]]:
    """The rows of a table, each with what to call it ("line 3 of a.csv").

    A line of .jsonl that is no JSON object comes as the error that names it; a table that breaks
    off or whose rows do not fit the header raises it.

    Args:
        columns: names that must be there.

    Raises:
        ValueError: no readable table, a package that is not installed, or no such column.
    """
    kind = unpacked_name(path).suffix.lower()
    require_file(path, "the table")
    if kind == ".parquet":
        yield from _parquet(path, columns)
    elif kind in (".csv", ".tsv"):
        yield from _separated(path, kind, columns)
    else:
        rows = _json(path) if kind == ".json" else _json_lines(path)
        known: dict[str, None] = {}
        for called, row in rows:
            if not isinstance(row, BadRowError):
                known.update(dict.fromkeys(row))
            yield called, row
        _check_columns(path, columns, known)


def text_of(row: Row, column: str, called: str) -> str:
    """The text in a column of a row; "" where there is none.

    Raises:
        BadRowError: something that is no text.
    """
    value = row.get(column)
    if value is None or value != value:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadRowError(f"{column!r} must be text in {called}, got {type(value).__name__}.")
    if value in (math.inf, -math.inf):  # JSON's 1e999, whose digits are lost
        raise BadRowError(f"{column!r} must be text in {called}, got a number that is too large.")
    text = str(value)
    if not is_whole(text):
        raise BadRowError(f"{column!r} has half a character in {called}.")
    return text


def _check_columns(path: Path, columns: Sequence[str], known: Iterable[str]) -> None:
    """Each of the columns is there, and each that is read, all where none are named, is once."""
    known = list(known)
    counts = Counter(known)
    for name in columns:
        if name not in counts:
            there = ", ".join(map(repr, known)) or "none"
            hint = suggest(name, known, f"name one of them: {there}.")
            raise ValueError(
                f"the table {printable(path)} has no column {name!r}, it has {there}; {hint}"
            )
    for name in columns or filter(None, counts):
        if counts[name] > 1:
            raise ValueError(f"the table {printable(path)} has the column {name!r} twice.")


# -- JSON -----------------------------------------------------------------------------------------


def _json_lines(path: Path) -> Iterator[tuple[str, Row | BadRowError]]:
    for number, line in enumerate(lines(read_text(path)), start=1):
        if not line.strip():
            continue
        called = f"line {number} of {printable(path)}"
        yield called, json_row(line, called)


def json_row(text: str, called: str) -> Row | BadRowError:
    """The JSON object in a text, or what is wrong with it.

    Args:
        called: what to call it: "line 3 of a.jsonl".
    """
    try:
        row = json.loads(text, object_pairs_hook=_each_once)
    except _TwiceError as error:
        return BadRowError(f"{called} has {error} twice.")
    except (ValueError, RecursionError):
        return BadRowError(f"{called} is not JSON.")
    return row if isinstance(row, dict) else BadRowError(f"{called} is no JSON object.")


class _TwiceError(ValueError):
    """A name that is there twice, of which one value would be lost."""


def _each_once(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        raise _TwiceError(repr(next(name for name in names if names.count(name) > 1)))
    return row


def _json(path: Path) -> Iterator[tuple[str, Row | BadRowError]]:
    """A list of objects."""
    text = read_text(path)
    try:
        rows = json.loads(text, object_pairs_hook=_each_once)
    except _TwiceError as error:
        raise ValueError(f"{printable(path)} has {error} twice in one object.") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"{printable(path)} is not JSON: {reason}.") from None
    if not isinstance(rows, list):
        raise ValueError(f"{printable(path)} must be a list of JSON objects, one for each row.")
    for number, row in enumerate(rows, start=1):
        called = f"entry {number} of {printable(path)}"
        yield called, row if isinstance(row, dict) else BadRowError(f"{called} is no JSON object.")


# -- separated values -----------------------------------------------------------------------------


def _separated(
    path: Path, kind: str, columns: Sequence[str]
) -> Iterator[tuple[str, Row | BadRowError]]:
    text = read_text(path)
    first = lines(text)[0] if text else ""
    if not first.strip():
        raise ValueError(f"the table {printable(path)} has no header in its first line.")
    delimiter = "\t" if kind == ".tsv" else max(_DELIMITERS, key=_unquoted(first).count)
    try:
        rows = _parsed(path, text, delimiter, csv.QUOTE_MINIMAL)
    except BadRowError:
        if kind != ".tsv":
            raise
        rows = _parsed(path, text, delimiter, csv.QUOTE_NONE)  # quotes are letters to many
    header = [name.strip() for name in rows[0][1]]
    _check_columns(path, columns, header)
    for number, fields in rows[1:]:
        yield (
            f"line {number} of {printable(path)}",
            dict(zip(header, fields, strict=True)),
        )


def _parsed(path: Path, text: str, delimiter: str, quoting: Any) -> list[tuple[int, list[str]]]:
    """Rows with the line on which each ends; all are as long as the first."""
    before = csv.field_size_limit(sys.maxsize)
    rows: list[tuple[int, list[str]]] = []
    try:
        # the newlines stay as they are: they may lie within quotes
        reader = csv.reader(
            io.StringIO(text, newline=""), delimiter=delimiter, quoting=quoting, strict=True
        )
        for fields in reader:
            if not fields:
                continue
            if rows and len(fields) != len(rows[0][1]):
                raise BadRowError(
                    f"line {reader.line_num} of {printable(path)} has {len(fields)} fields, but "
                    f"the header has {len(rows[0][1])}; put quotes around fields with "
                    f"{delimiter!r} in them."
                )
            rows.append((reader.line_num, fields))
    except csv.Error as error:
        raise BadRowError(
            f"line {reader.line_num} of {printable(path)} is not {delimiter!r}-separated: {error}."
        ) from None
    finally:
        csv.field_size_limit(before)
    return rows


def _unquoted(line: str) -> str:
    """A line without what stands in double quotes."""
    return "".join(line.split('"')[::2])


# -- Parquet --------------------------------------------------------------------------------------


def _parquet(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Row | BadRowError]]:
    try:
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise ValueError(
            f"{printable(path)} needs the package pyarrow: pip install pyarrow"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            _check_columns(path, columns, file.schema_arrow.names)
            number = 0
            for batch in file.iter_batches(_BATCH, columns=list(columns) or None):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number} of {printable(path)}", row
    except ValueError as error:
        if str(error).startswith("the table"):
            raise
        raise ValueError(f"{printable(path)} is no readable .parquet: {error}.") from None
    except Exception as error:  # the package has errors of its own
        raise ValueError(f"{printable(path)} is no readable .parquet: {error}.") from None
