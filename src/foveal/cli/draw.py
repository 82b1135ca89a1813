"""`foveal draw PATTERN`: who attends to whom; `softcap`, `sinks`: what shapes logits; `attention`,
`picture`: what a run sees, draws."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from foveal.cli.parsing import check_output, parse
from foveal.common.inputs import reading


@dataclass(kw_only=True)
class Options:
    """Draw a pattern as a PNG.

    `foveal draw attention --help` is about the attention of a run, `foveal draw picture --help`
    about pictures from words, `foveal draw softcap --help` and `foveal draw sinks --help` about
    what else shapes the weights of `attend`.

    Attributes:
        pattern: such as "SlidingWindow(window=8)" or "Halo(size=16, block_size=4) & Full()".
        length: positions to draw; the whole image of an image pattern, else 64, or as many as show
            the structure, unless given.
        output: the picture's path; named after the pattern unless given.
        bias: what pairs gain by their offset, drawn instead of the pattern where it is given:
            "rows", the row of each pair in a TableBias of the pattern; "alibi"; "t5", the buckets
            of T5.
    """

    pattern: Annotated[str, tyro.conf.Positional]
    length: int | None = None
    output: Path | None = None
    bias: Literal["rows", "alibi", "t5"] | None = None


def main(arguments: list[str]) -> int:
    """Draw a pattern and print the path of the picture."""
    if arguments[:1] == ["attention"]:
        return draw_attention(arguments[1:])
    if arguments[:1] == ["picture"]:
        return draw_picture(arguments[1:])
    if arguments[:1] in (["softcap"], ["sinks"]):
        return draw_shaping(arguments[0], arguments[1:])
    options = parse(Options, arguments, "draw")
    from foveal.patterns import serialize

    with reading(f"the pattern {options.pattern!r}"):
        pattern = serialize.parse(options.pattern)
    path = check_output(options.output or Path(_file_name(options.pattern)))
    if options.bias is not None:
        from foveal.draw.biases import draw_bias

        print(draw_bias(pattern, options.bias, options.length, path))
        return 0
    from foveal.draw.patterns import draw_pattern

    print(draw_pattern(pattern, options.length, path))
    return 0


def _file_name(expression: str) -> str:
    """`SlidingWindow(window=8)` -> `slidingwindow-window-8.png`."""
    words = re.findall(r"[a-z0-9]+", expression.lower())
    return "-".join(words)[:80] + ".png"


# -- of logits ------------------------------------------------------------------------------------

Numbers = Annotated[tuple[float, ...], tyro.conf.arg(metavar="NUMBER ...")]


@dataclass(kw_only=True)
class SoftcapOptions:
    """Draw what soft-caps make of logits.

    Attributes:
        at: the caps; up to four.
        output: the picture's path.
    """

    at: Numbers = (5.0, 10.0, 20.0)
    output: Path = Path("softcap.png")


@dataclass(kw_only=True)
class SinksOptions:
    """Draw which share of the weights attention sinks leave to the keys.

    Attributes:
        at: the logits of the sinks; up to four.
        output: the picture's path.
    """

    at: Numbers = (-5.0, 0.0, 5.0)
    output: Path = Path("sinks.png")


def draw_shaping(what: str, arguments: list[str]) -> int:
    """Draw "softcap" or "sinks" and print the path of the picture."""
    kind: Any = SoftcapOptions if what == "softcap" else SinksOptions
    options = parse(kind, arguments, f"draw {what}")
    path = check_output(options.output)
    from foveal.draw import logits

    draw = logits.draw_softcap if what == "softcap" else logits.draw_sinks
    print(draw(path, options.at))
    return 0


# -- of runs --------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class AttentionOptions:
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


def draw_attention(arguments: list[str]) -> int:
    """Draw and print the paths of the pictures."""
    options = parse(AttentionOptions, arguments, "draw attention")
    path = check_output(options.output)
    from foveal.recipes.images.look import draw_run_attention

    at = [_pixel(text) for text in options.at]
    for drawn in draw_run_attention(options.run, options.image, at, path, options.device):
        print(drawn)
    return 0


def _pixel(text: str) -> tuple[int, int]:
    """`12,7` -> (12, 7)."""
    try:
        row, column = (int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--at must be ROW,COLUMN such as 16,16, got {text!r}.") from None
    return row, column


@dataclass(kw_only=True)
class PictureOptions:
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


def draw_picture(arguments: list[str]) -> int:
    """Draw and print the path of the sheet."""
    options = parse(PictureOptions, arguments, "draw picture")
    path = check_output(options.output or Path(_sheet_name(options.text)))
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


def _sheet_name(text: str) -> str:
    """`Woman juggling!` -> `woman-juggling.png`."""
    words = re.findall(r"\w+", text.lower())
    return ("-".join(words)[:80] or "picture") + ".png"
