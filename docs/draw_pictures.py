"""Draw the pictures of patterns.md, selected.md and biases.md again: python docs/draw_pictures.py

A picture of the first is named by the pattern that it shows, ![SlidingWindow(16)](pictures/...),
so page and pictures cannot part.
"""

import io
import re
from pathlib import Path

import torch
from PIL import Image

from foveal.draw.biases import draw_bias
from foveal.draw.logits import draw_sinks, draw_softcap
from foveal.draw.patterns import draw_pattern
from foveal.patterns import BlockSparse, Neighborhood, Pattern, SlidingWindow, serialize

DOCS = Path(__file__).parent
PICTURE = re.compile(r"!\[(.+)\]\((pictures/[\w-]+\.png)\)")
COLORS = 16  # which makes a file of 10 to 25 KB


def pictures() -> dict[str, str]:
    """Path of each picture -> the pattern on it, as text."""
    text = (DOCS / "patterns.md").read_text("utf-8")
    return {path: pattern for pattern, path in PICTURE.findall(text)}


def selection() -> Pattern:
    """Tiles that read their own block, the first, and two more of their past."""
    scores = torch.rand(16, 16, generator=torch.Generator().manual_seed(3)).tril(-1)
    scores[:, 0] = 0
    layout = torch.zeros(16, 16).scatter(1, scores.topk(2).indices, 1.0) * (scores > 0)
    layout += torch.eye(16)
    layout[:, 0] = 1
    return BlockSparse(layout, 4, causal=True)


def shrink(path: Path) -> None:
    picture = Image.open(path).convert("RGB")
    picture = picture.resize((picture.width * 2 // 3, picture.height * 2 // 3))
    picture.quantize(96, dither=Image.Dither.NONE).save(path, optimize=True)


def save(path: str, pattern: Pattern, drawn: bytes | None = None) -> None:
    picture = Image.open(io.BytesIO(drawn or draw_pattern(pattern)))
    few = picture.convert("RGB").quantize(
        COLORS if drawn is None else 16 * COLORS, dither=Image.Dither.NONE
    )
    few.save(DOCS / path, optimize=True)
    print(f"{path}  {(DOCS / path).stat().st_size / 1000:.0f} KB  {pattern}")


def main() -> None:
    (DOCS / "pictures").mkdir(exist_ok=True)
    for path, expression in pictures().items():
        save(path, serialize.parse(expression))
    save("results/selected.png", selection())
    shrink(draw_softcap(DOCS / "results/softcap.png"))
    shrink(draw_sinks(DOCS / "results/sinks.png"))
    neighbours = Neighborhood((12, 16), 5, border="shift")
    save("results/offsets.png", neighbours, draw_bias(neighbours))
    save("results/alibi.png", SlidingWindow(32), draw_bias(SlidingWindow(32), "alibi"))


if __name__ == "__main__":
    main()
