"""`foveal draw picture RUN TEXT`: a contact sheet of what a DALL-E run draws for a text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from foveal.cli.parsing import check_output, parse


@dataclass(kw_only=True)
class Options:
    """Draw pictures for a text, as one PNG.

    Attributes:
        run: the run's folder, or "latest".
        text: what to draw, such as "woman juggling".
        num: pictures on the sheet.
        candidates: pictures to draw, of which CLIP picks the best; as many as --num unless given.
        temperature: 0 takes the likeliest tokens; above 1 is wilder than the model thinks.
        top_k: draw among so many likeliest tokens.
        top_p: draw among the likeliest tokens of so much probability.
        guidance: how far to exaggerate what the text says; 1 is not at all.
        seed: another number draws other pictures.
        output: the sheet's path; named after the text unless given.
        device: auto, cpu, cuda, cuda:1 or mps.
    """

    run: Annotated[str, tyro.conf.Positional]
    text: Annotated[str, tyro.conf.Positional]
    num: int = 16
    candidates: int | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    guidance: float = 1.0
    seed: int = 0
    output: Path | None = None
    device: str = "auto"


def main(arguments: list[str]) -> int:
    """Draw and print the path of the sheet."""
    options = parse(Options, arguments, "draw picture")
    path = Path(_file_name(options.text)) if options.output is None else options.output
    check_output(path)
    from foveal.recipes.captions.draw import draw_pictures

    sheet = draw_pictures(
        options.run,
        options.text,
        path,
        num=options.num,
        candidates=options.candidates,
        seed=options.seed,
        device=options.device,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        guidance=options.guidance,
    )
    print(sheet)
    return 0


def _file_name(text: str) -> str:
    """`Woman juggling!` -> `woman-juggling.png`."""
    words = re.findall(r"\w+", text.lower())
    return ("-".join(words)[:80] or "picture") + ".png"
