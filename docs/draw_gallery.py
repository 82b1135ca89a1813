"""Draw the picture that README and front page begin with: python docs/draw_gallery.py

Six patterns, in SVG, for light and dark pages. What is read comes from `pattern.allows`, and the
colours are those of the explorer; tests/test_docs.py compares the files with what this draws.
"""

import itertools
import re
from html import escape
from pathlib import Path

import torch

import foveal.explore
from foveal import patterns as P

ASSETS = Path(__file__).parent / "assets"
TOKENS, CELL = 20, 8
IMAGE, PIXEL = (12, 16), 10
TEXT = IMAGE[1]
SIDE, STEP = TOKENS * CELL, 208
"""Of a panel, and from one to the next."""
MASKS, PIXELS = 30, 294
"""Where the panels of the two rows begin, from the top."""

SEQUENCES: dict[str, tuple[P.Pattern, str]] = {
    "SlidingWindow": (P.SlidingWindow(6), "the tokens just before"),
    "Strided": (P.Strided(6), "near ones, every sixth"),
    "Pyramid": (P.Pyramid(2, causal=True), "all: far ones as means"),
}
IMAGES: dict[str, tuple[P.Pattern, str]] = {
    "Neighborhood": (P.Neighborhood(IMAGE, 5), "the pixels around it"),
    "Halo": (P.Halo(IMAGE, 4, 2), "its block, and a rim"),
    "TextImage": (
        P.TextImage(TEXT, P.Axial(IMAGE, "row", causal=True)),
        "words, and its row so far",
    ),
}
QUERY, AT = 14, (7, 9)
"""The token, and the pixel (row, column), that are shown orange."""


def palettes() -> dict[str, dict[str, str]]:
    """The colours of the explorer by name, for light and for dark."""
    css = (Path(foveal.explore.__file__).parent / "page.css").read_text("utf-8")
    roots = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    return {
        scheme: dict(re.findall(r"--([\w-]+): (#\w+)", root))
        for scheme, root in zip(("light", "dark"), roots, strict=True)
    }


def cells(colours: list[list[str]], left: int, top: int, side: int) -> list[str]:
    """Squares, those of one colour side by side as one, and the frame and lines between them."""
    height, width = len(colours), len(colours[0])
    parts: dict[str, str] = {}
    for row, names in enumerate(colours):
        column = 0
        for name, group in itertools.groupby(names):
            count = len(list(group))
            at = f"M{left + column * side} {top + row * side}"
            parts[name] = parts.get(name, "") + f"{at}h{count * side}v{side}h-{count * side}z"
            column += count
    lines = "".join(f"M{left + i * side} {top}v{height * side}" for i in range(width + 1))
    lines += "".join(f"M{left} {top + i * side}h{width * side}" for i in range(height + 1))
    drawn = [
        f'<path class="{name.split()[0]}" {_faint(name)}d="{d}"/>' for name, d in parts.items()
    ]
    return [*drawn, f'<path class="lines" d="{lines}"/>']


def _faint(name: str) -> str:
    """ "read 2" is a mean of level 2, and paler."""
    level = int(name.partition(" ")[2] or 0)
    return f'opacity="{0.6**level:.2f}" ' if level else ""


def sequence(pattern: P.Pattern) -> list[list[str]]:
    """The colour of each pair: a row of the list is a query."""
    places = torch.arange(TOKENS)
    read = pattern.allows(places[:, None], places[None]).expand(TOKENS, TOKENS)
    level = torch.zeros(TOKENS, TOKENS, dtype=torch.long)
    if isinstance(pattern, P.Pyramid):
        level = pattern.level(places[:, None], places[None])
    found = [
        [f"read {level[q, k]}" if read[q, k] else "future" if k > q else "cell" for k in places]
        for q in places
    ]
    found[QUERY][QUERY] = "chosen"
    return found


def image(pattern: P.Pattern) -> tuple[list[str], list[list[str]]]:
    """The colour of each word, where the pattern has words, and of each pixel."""
    height, width = IMAGE
    words = TEXT if isinstance(pattern, P.TextImage) else 0
    query = words + AT[0] * width + AT[1]
    read = pattern.allows(torch.tensor(query), torch.arange(words + height * width))
    names = [
        "read" if reads else "future" if pattern.is_causal and key > query else "cell"
        for key, reads in enumerate(read.tolist())
    ]
    names[query] = "chosen"
    pixels = names[words:]
    return names[:words], [pixels[i : i + width] for i in range(0, len(pixels), width)]


def caption(name: str, text: str, left: int, top: int) -> list[str]:
    return [
        f'<text class="name" x="{left}" y="{top}">{name}</text>',
        f'<text class="said" x="{left}" y="{top + 18}">{escape(text)}</text>',
    ]


def described() -> str:
    """All that is shown, for who cannot see it."""
    shown = SEQUENCES | IMAGES
    return "; ".join(f"{name}: {text} ({pattern})" for name, (pattern, text) in shown.items())


def svg(palette: dict[str, str]) -> str:
    """The whole picture in one palette."""
    width, bottom = 3 * STEP, PIXELS + IMAGE[0] * PIXEL
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + 46}" '
        f'width="{width}" height="{bottom + 46}" role="img" '
        "font-family=\"system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif\">",
        f"<title>{escape(described())}</title>",
        f"<style>{style(palette)}</style>",
        heading("A sequence: each row is a token, and blue is what it reads.", 16),
    ]
    for number, (name, (pattern, text)) in enumerate(SEQUENCES.items()):
        left = number * STEP + 1
        parts += cells(sequence(pattern), left, MASKS, CELL)
        row = f'y="{MASKS + QUERY * CELL}" width="{SIDE}" height="{CELL}"'
        parts.append(f'<rect class="row" x="{left}" {row}/>')
        parts += caption(name, text, left, MASKS + SIDE + 20)
    parts.append(
        heading("An image: blue is what the orange pixel reads.", PIXELS - 2 * PIXEL - 10)
    )
    for number, (name, (pattern, text)) in enumerate(IMAGES.items()):
        left = number * STEP + 1
        words, pixels = image(pattern)
        if words:
            parts += cells([words], left, PIXELS - 2 * PIXEL, PIXEL)
        parts += cells(pixels, left, PIXELS, PIXEL)
        parts += caption(name, text, left, bottom + 20)
    return "\n".join([*parts, "</svg>"]) + "\n"


def heading(text: str, top: int) -> str:
    return f'<text class="head" x="0" y="{top}">{text}</text>'


def style(palette: dict[str, str]) -> str:
    fills = "".join(
        f".{name}{{fill:{palette[name]}}}" for name in ("read", "chosen", "cell", "future")
    )
    return (
        f"{fills}path{{shape-rendering:crispEdges}}"
        f".lines{{fill:none;stroke:{palette['line']}}}"
        f".row{{fill:none;stroke:{palette['chosen']};stroke-width:2}}"
        f".head,.name{{fill:{palette['ink']};font-size:16px}}.name{{font-weight:600}}"
        f".said{{fill:{palette['muted']};font-size:15px}}"
    )


def files() -> dict[Path, str]:
    """What lies in docs/assets."""
    return {ASSETS / f"patterns-{name}.svg": svg(one) for name, one in palettes().items()}


def main() -> None:
    for path, text in files().items():
        path.write_text(text, "utf-8")
        print(f"{path.name}  {len(text) / 1000:.0f} KB")


if __name__ == "__main__":
    main()
