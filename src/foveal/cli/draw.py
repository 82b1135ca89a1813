"""`foveal draw PATTERN`: who attends to whom; `attention`, `picture`: what a run sees, draws."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from foveal.cli.parsing import check_output, parse
from foveal.common.inputs import reading


@dataclass(kw_only=True)
class Options:
    """Draw a pattern as a PNG.

    `foveal draw attention --help` is about the attention of a run, `foveal draw picture --help`
    about pictures from words.

    Attributes:
        pattern: such as "SlidingWindow(window=8)" or "Halo(size=16, block_size=4) & Full()".
        length: positions to draw; the whole image of an image pattern, else 64, unless given.
        output: the picture's path; named after the pattern unless given.
    """

    pattern: Annotated[str, tyro.conf.Positional]
    length: int | None = None
    output: Path | None = None


def main(arguments: list[str]) -> int:
    """Draw a pattern and print the path of the picture."""
    if arguments[:1] == ["attention"]:
        from foveal.cli import draw_attention

        return draw_attention.main(arguments[1:])
    if arguments[:1] == ["picture"]:
        from foveal.cli import draw_picture

        return draw_picture.main(arguments[1:])
    options = parse(Options, arguments, "draw")
    from foveal.patterns import serialize

    with reading(f"the pattern {options.pattern!r}"):
        pattern = serialize.parse(options.pattern)
    path = Path(_file_name(options.pattern)) if options.output is None else options.output
    check_output(path)
    from foveal.draw.patterns import draw_pattern

    print(draw_pattern(pattern, options.length, path))
    return 0


def _file_name(expression: str) -> str:
    """`SlidingWindow(window=8)` -> `slidingwindow-window-8.png`."""
    words = re.findall(r"[a-z0-9]+", expression.lower())
    return "-".join(words)[:80] + ".png"
