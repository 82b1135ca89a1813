"""`foveal draw attention RUN IMAGE --at Y,X`: where pixels of a picture look."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from foveal.cli.parsing import check_output, parse


@dataclass(kw_only=True)
class Options:
    """Lay the attention of chosen pixels over a picture, for every layer and head.

    Attributes:
        run: the run's folder, or "latest".
        image: a picture; it is scaled and cropped as in training.
        at: "ROW,COLUMN" of a pixel after that; several are separated by spaces. The middle
            unless given.
        output: the picture's path; a number is added to it for each further pixel.
        device: auto, cpu, cuda, cuda:1 or mps.
    """

    run: Annotated[str, tyro.conf.Positional]
    image: Annotated[str, tyro.conf.Positional]
    at: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ROW,COLUMN", help_behavior_hint="")] = ()
    output: Path = Path("attention.png")
    device: str = "auto"


def main(arguments: list[str]) -> int:
    """Draw and print the paths of the pictures."""
    options = parse(Options, arguments, "draw attention")
    check_output(options.output)
    from foveal.recipes.images.look import draw_run_attention

    at = [_pixel(text) for text in options.at]
    drawn = draw_run_attention(options.run, options.image, at, options.output, options.device)
    for path in drawn:
        print(path)
    return 0


def _pixel(text: str) -> tuple[int, int]:
    """`12,7` -> (12, 7)."""
    try:
        row, column = (int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--at must be ROW,COLUMN such as 16,16, got {text!r}.") from None
    return row, column
