"""Draw the pictures of docs/patterns.md again: python docs/draw_pictures.py

A picture of that page is named by the pattern that it shows, ![SlidingWindow(16)](pictures/...),
so page and pictures cannot part.
"""

import io
import re
from pathlib import Path

from PIL import Image

from foveal.draw.patterns import draw_pattern
from foveal.patterns import serialize

DOCS = Path(__file__).parent
PICTURE = re.compile(r"!\[(.+)\]\((pictures/[\w-]+\.png)\)")
COLORS = 16  # which makes a file of 10 to 25 KB


def pictures() -> dict[str, str]:
    """Path of each picture -> the pattern on it, as text."""
    text = (DOCS / "patterns.md").read_text("utf-8")
    return {path: pattern for pattern, path in PICTURE.findall(text)}


def main() -> None:
    (DOCS / "pictures").mkdir(exist_ok=True)
    for path, expression in pictures().items():
        picture = Image.open(io.BytesIO(draw_pattern(serialize.parse(expression))))
        few = picture.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
        few.save(DOCS / path, optimize=True)
        print(f"{path}  {(DOCS / path).stat().st_size / 1000:.0f} KB  {expression}")


if __name__ == "__main__":
    main()
