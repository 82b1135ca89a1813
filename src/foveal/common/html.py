"""HTML that a notebook shows: escaped text, small tables, nothing loaded, no colours of its own.

Styles are attributes, for notebooks drop style sheets; colours are those of the text around, so a
table is read on light and on dark. Without any style, as on GitHub, it is still a table.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_TABLE = "border-collapse:collapse;margin:.3em 0;color:inherit;background:transparent"
_CAPTION = (
    "caption-side:top;text-align:left;white-space:nowrap;padding:.2em 0;font-weight:600;"
    "color:inherit"
)
_CELL = (
    "text-align:{side};vertical-align:top;padding:.2em 1.2em .2em 0;font-weight:{weight};"
    "border:0;border-bottom:1px solid rgba(128,128,128,.3);max-width:42em;"
    "font-variant-numeric:tabular-nums;white-space:{space}"
)
_BAR = "display:inline-block;height:.55em;width:{width:.2f}em;background:#3a86c8;margin-right:.5em"


@dataclass(frozen=True)
class Share:
    """A part of a whole, from 0 to 1, shown as a bar and in percent."""

    part: float


def escape(value: Any) -> str:
    """Text as HTML, without the control characters that a model may write."""
    text = str(value)
    visible = "".join(c if c in "\n\t" or c.isprintable() else "\N{MIDDLE DOT}" for c in text)
    return html.escape(visible)


def table(
    rows: Iterable[Sequence[Any]], *, title: str = "", head: Sequence[str] = (), note: str = ""
) -> str:
    """A table whose first cell of a row names it.

    Args:
        rows: cells: text, numbers (set to the right), a Share; None is an empty one.
        title, note: above and below it.
        head: names of the columns.
    """
    rows = list(rows)
    body = "".join(f"<tr>{''.join(map(_cell, row, range(len(row))))}</tr>" for row in rows)
    parts = [f'<table style="{_TABLE}">']
    if title:
        parts.append(f'<caption style="{_CAPTION}">{escape(title)}</caption>')
    if head:
        names = "".join(_name(name, [row[i] for row in rows]) for i, name in enumerate(head))
        parts.append(f"<thead><tr>{names}</tr></thead>")
    parts.append(f"<tbody>{body}</tbody></table>")
    if note:
        parts.append(f'<div style="opacity:.75">{escape(note)}</div>')
    return "".join(parts)


def facts(rows: Mapping[str, Any], *, title: str = "", note: str = "") -> str:
    """A table of labels and what stands for each; those with None or "" are left out."""
    found = ((label, value) for label, value in rows.items() if value is not None and value != "")
    return table(found, title=title, note=note)


def _name(name: str, cells: Sequence[Any]) -> str:
    """The head of a column, above its numbers where it has no others."""
    given = [cell for cell in cells if cell is not None]
    side = "right" if given and all(map(_is_number, given)) else "left"
    style = _CELL.format(side=side, weight=600, space="nowrap")
    return f'<th scope="col" style="{style}">{escape(name)}</th>'


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cell(value: Any, column: int) -> str:
    number = _is_number(value)
    if column == 0:
        style = _CELL.format(side="left", weight="normal", space="nowrap")
        return f'<th scope="row" style="{style};opacity:.75">{escape(value)}</th>'
    style = _CELL.format(
        side="right" if number else "left",
        weight="normal",
        space="nowrap" if number or isinstance(value, Share) else "pre-wrap",
    )
    return f'<td style="{style}">{_content(value)}</td>'


def _content(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Share):
        width = 8 * min(1.0, max(0.0, value.part))
        return f'<span style="{_BAR.format(width=width)}"></span>{percent(value.part)}'
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if type(value) is int else escape(value)


def percent(part: float) -> str:
    """A share with three digits: 12.3%, 0.0123%."""
    return f"{100 * part:.3g}%"
