"""A report as one HTML file: pictures inlined, nothing loaded from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from foveal.common.files import write_text
from foveal.common.html import escape


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in this order.

    Attributes:
        title: the heading.
        note: a sentence below it.
        pictures: (caption, path of a PNG).
        rows: label -> value, as a table.
        samples: (given, written) texts, shown as code.
        code: preformatted text, folded away.
    """

    title: str
    note: str = ""
    pictures: Sequence[tuple[str, Path]] = ()
    rows: Mapping[str, str] = field(default_factory=dict)
    samples: Sequence[tuple[str, str]] = ()
    code: str = ""


def write_report(
    path: Path,
    *,
    title: str,
    subtitle: str,
    headline: Mapping[str, str],
    sections: Sequence[Section],
) -> Path:
    """Write a self-contained HTML report in one step.

    Args:
        headline: the few numbers that matter, label -> value, shown large.
        sections: the rest.
    """
    cards = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(label)}</span></div>'
        for label, value in headline.items()
    )
    body = "\n".join(_section(section) for section in sections)
    page = _PAGE.format(
        title=escape(title), subtitle=escape(subtitle), cards=cards, body=body, style=_STYLE
    )
    write_text(path, page)
    return path


def _section(section: Section) -> str:
    parts = [f"<h2>{escape(section.title)}</h2>"]
    if section.note:
        parts.append(f"<p>{escape(section.note)}</p>")
    parts += [_picture(caption, file) for caption, file in section.pictures]
    if section.rows:
        rows = "".join(
            f"<tr><th>{escape(label)}</th><td>{escape(value)}</td></tr>"
            for label, value in section.rows.items()
        )
        parts.append(f"<table>{rows}</table>")
    parts += [
        f'<pre class="sample"><i>{escape(given)}</i>{escape(written)}</pre>'
        for given, written in section.samples
    ]
    if section.code:
        parts.append(
            f"<details><summary>Show</summary><pre>{escape(section.code)}</pre></details>"
        )
    return "<section>" + "\n".join(parts) + "</section>"


def _picture(caption: str, file: Path) -> str:
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header><h1>{title}</h1><p>{subtitle}</p></header>
<div class="cards">{cards}</div>
{body}
</body>
</html>
"""

_STYLE = """
:root { --ink: #1d2733; --muted: #5d6b7a; --line: #e4e9ef; --accent: #2b6cb0; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 54rem; color: var(--ink);
  background: #fff; font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { margin: 0; font-size: 1.9rem; letter-spacing: -0.01em; }
h2 { margin: 2.6rem 0 0.6rem; font-size: 1.15rem; }
header p, section > p { margin: 0.3rem 0 0.8rem; color: var(--muted); }
.cards { display: grid; gap: 0.8rem; margin-top: 1.4rem;
  grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); }
.card { padding: 0.9rem 1rem; border: 1px solid var(--line); border-radius: 10px; }
.card b { display: block; font-size: 1.45rem; font-variant-numeric: tabular-nums; }
.card:first-child b { color: var(--accent); }
.card span { color: var(--muted); font-size: 0.85rem; }
figure { margin: 0.4rem 0 1.2rem; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption { text-align: center; color: var(--muted); font-size: 0.85rem; }
table { width: 100%; border-collapse: collapse; font-size: 0.92rem; }
th, td { padding: 0.38rem 0.6rem 0.38rem 0; border-bottom: 1px solid var(--line);
  text-align: left; vertical-align: top; font-variant-numeric: tabular-nums; }
th { width: 32%; font-weight: 500; color: var(--muted); }
pre { margin: 0.6rem 0; padding: 0.9rem 1rem; overflow-x: auto; border-radius: 10px;
  background: #f6f8fa; font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre.sample { white-space: pre-wrap; overflow-wrap: anywhere; }
pre i { font-style: normal; font-weight: 700; color: var(--accent); }
summary { cursor: pointer; color: var(--accent); }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6ebf1; --muted: #9aa8b7; --line: #2c3642; --accent: #7ab3ee; }
  body { background: #12171d; } pre { background: #1a212a; }
  img { background: #fff; border-radius: 10px; }
}
"""
