"""Pictures of patterns: the mask, and on images what one pixel reads."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from foveal.draw.style import EMPTY, FUTURE, INK, MUTED, QUERY, READ, Picture, as_png
from foveal.patterns import Halo, Pattern, Pyramid, TextImage
from foveal.patterns.image import GridPattern

MAX_LENGTH = 16384
MAX_CELLS = 640
"""Cells of a mask on a side; longer sequences are drawn as shares of allowed pairs."""
MAX_HEADS = 4
_LEAST_LENGTH, _PROBES = 64, 64
_TELLING = 0.65
"""Share of pairs that may be read at which a picture has something to tell."""
MAX_FRAMES = 12
"""Frames of a clip that are shown, those round the query's."""


@dataclass(frozen=True)
class Canvas:
    """Where the pixels of an image pattern stand in the sequence; a line has one row."""

    height: int
    width: int
    text: int = 0
    frames: int = 1

    @property
    def length(self) -> int:
        return self.text + self.frames * self.height * self.width

    def place(self, token: int) -> tuple[int, int, int]:
        """(frame, row, column) of a token of the image."""
        rest, column = divmod(token - self.text, self.width)
        return *divmod(rest, self.height), column


@overload
def draw_pattern(pattern: Pattern, length: int | None = None, path: None = None) -> Picture: ...
@overload
def draw_pattern(pattern: Pattern, length: int | None = None, *, path: str | Path) -> Path: ...
@overload
def draw_pattern(pattern: Pattern, length: int | None, path: str | Path) -> Path: ...
def draw_pattern(
    pattern: Pattern, length: int | None = None, path: str | Path | None = None
) -> Picture | Path:
    """Draw a pattern as a PNG: the mask (rows are queries), and what one query reads.

    On images a second panel shows the pixels that one pixel reads, and the text before them; of a
    clip, the frames side by side.
    Blue is read, white is not, orange is the query shown; of a causal pattern the future is grey.
    Where a Pyramid reads means of clusters, blue is the paler the larger they are.
    Patterns of several heads get a mask for each of the first four.

    Args:
        pattern: what to draw.
        length: positions to draw; None: the whole image or layout, else 64, or as many as
            show the structure.
        path: where the PNG goes; None returns its bytes.

    Returns:
        the path, or the bytes of the PNG.

    Raises:
        ValueError: length is not between 1 and 16,384, or does not suit the pattern.
        ModuleNotFoundError: matplotlib is missing (`pip install "foveal[draw]"`).
    """
    length = natural_length(pattern) if length is None else length
    if not 1 <= length <= MAX_LENGTH:
        raise ValueError(f"length must be between 1 and {MAX_LENGTH} to be drawn, got {length=}.")
    check_drawable(pattern, length)
    return as_png(_figure(pattern, length), path)


def check_drawable(pattern: Pattern, length: int) -> None:
    """Raise ValueError where the pattern does not take so many tokens, or has no query of them."""
    pattern.check_length(length)
    if not pattern.num_queries(length):
        raise ValueError(f"{pattern} has no queries, so that there is nothing to draw.")


def natural_length(pattern: Pattern, most: int = 4096) -> int:
    """The length a pattern is made for: its image or layout; or one that shows its structure.

    That is 64 where it may be, and up to `most` for a window or stride that would fill such a
    picture.
    """
    own = pattern.natural_length
    return _telling_length(pattern, most) if own is None else max(1, own)


def _telling_length(pattern: Pattern, most: int) -> int:
    """The first length, doubled from 64, at which pairs are left out; 64 if there is none."""
    length = _LEAST_LENGTH
    try:
        while length <= most:
            if _filled(pattern, length) <= _TELLING:
                return length
            length *= 2
    except (ValueError, LookupError, RuntimeError):
        pass  # a length that it does not bear; of 64, that is told where it is drawn
    return _LEAST_LENGTH


def _filled(pattern: Pattern, length: int) -> float:
    """Share of what may be read that some queries do read: of the past, of a causal pattern."""
    pattern.check_length(length)
    queries = torch.arange(_PROBES)[:, None] * pattern.num_queries(length) // _PROBES
    keys = torch.arange(length)[None]
    allowed = pattern.per_head()[0].allows(queries, keys).expand(_PROBES, length)
    may = keys <= queries if pattern.is_causal else torch.ones_like(allowed)
    return float(allowed.sum() / may.sum())


def find_canvas(pattern: Pattern) -> Canvas | None:
    """The image that a pattern is about, itself or through its parts; None for sequences."""
    if isinstance(pattern, GridPattern) and pattern.grid is not None:
        frames, height, width = (1, 1, *pattern.grid)[-3:]
        return Canvas(height, width, frames=frames)
    if isinstance(pattern, TextImage):
        image = find_canvas(pattern.image_pattern)
        return image and replace(image, text=image.text + pattern.text_length)
    found = (find_canvas(part) for part in getattr(pattern, "parts", ()))
    return next((canvas for canvas in found if canvas is not None), None)


def shown_canvas(pattern: Pattern, length: int) -> Canvas | None:
    """The same where there is an image to see among so many tokens."""
    canvas = find_canvas(pattern)
    if canvas is not None and (length <= canvas.text or canvas.frames * canvas.height == 1):
        return None
    return canvas


# -- numbers ------------------------------------------------------------------------------------


def shares(pattern: Pattern, length: int) -> Tensor:
    """Share of allowed pairs in each cell of the picture: (cells of queries, cells of keys)."""
    cell = -(-length // MAX_CELLS)
    count = -(-length // cell)
    keys = torch.arange(count * cell)
    rows = []
    num_queries = pattern.num_queries(length)
    for first in range(0, num_queries, cell):
        queries = torch.arange(first, min(first + cell, num_queries))[:, None]
        on = pattern.allows(queries, keys[:length][None]).expand(len(queries), length).float()
        padded = torch.nn.functional.pad(on.sum(0), (0, len(keys) - length))
        rows.append(padded.view(count, cell).sum(1) / (len(queries) * cell))
    return torch.stack(rows)


def sharpness(pattern: Pattern, length: int, shape: torch.Size) -> Tensor:
    """How finely each cell is read: 1, or less at the higher levels of a Pyramid."""
    if not isinstance(pattern, Pyramid):
        return torch.ones(shape)
    cell = -(-length // MAX_CELLS)
    queries, keys = (torch.arange(count) * cell for count in shape)
    return 0.6 ** pattern.level(queries[:, None], keys[None]).float()


def chosen_query(pattern: Pattern, length: int, canvas: Canvas | None) -> int:
    """The query to show: near the middle, and off the axes of symmetry."""
    num_queries = pattern.num_queries(length)
    if canvas is None or num_queries != length:
        return num_queries * 5 // 8
    frame, row, column = (n * 4 // 7 for n in (canvas.frames, canvas.height, canvas.width))
    place = (frame * canvas.height + row) * canvas.width + column
    return min(canvas.text + place, length - 1)


# -- panels -------------------------------------------------------------------------------------


def _figure(pattern: Pattern, length: int) -> Any:
    from matplotlib.figure import Figure

    canvas = shown_canvas(pattern, length)
    query = chosen_query(pattern, length, canvas)
    heads = pattern.per_head()[:MAX_HEADS]
    panels = len(heads) + (canvas is not None)
    caption = _caption(pattern, length, 58 * panels)
    # a mask of few queries is flat
    tall = 4.4 if canvas is not None else 4.4 * min(1.0, pattern.num_queries(length) / length)
    size = (0.6 + 4.4 * panels, 0.4 + max(1.0, tall) + 0.2 * (caption.count("\n") + 1))
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    all_axes = figure.subplots(1, panels, squeeze=False)[0]
    for number, (axes, one) in enumerate(zip(all_axes, heads, strict=False)):
        _draw_mask(axes, one, length, query, first=number == 0)
        if pattern.heads is not None:
            axes.set_title(f"head {number} of {pattern.heads}", color=INK, fontsize=10)
    if canvas is not None:
        _draw_canvas(all_axes[-1], pattern, canvas, length, query)
    figure.suptitle(caption, color=INK, fontsize=11)
    return figure


def _caption(pattern: Pattern, length: int, width: int) -> str:
    pairs, rows = pattern.num_pairs(length), (pattern.heads or 1) * pattern.num_queries(length)
    share = pairs / (rows * length)
    name = "\n".join(textwrap.wrap(repr(pattern), width, max_lines=3))
    each = pairs / rows
    counted = "1 pair" if pairs == 1 else f"{pairs:,} pairs"
    return f"{name}\n{counted}, {share:.1%} of all; {each:,.1f} keys a query"


def _draw_mask(axes: Any, pattern: Pattern, length: int, query: int, first: bool) -> None:
    part = shares(pattern, length)
    num_queries = pattern.num_queries(length)
    # thin lines of a long sequence fill little of a cell; the root keeps them visible
    strength = part.sqrt() * sharpness(pattern, length, part.shape)
    picture = _blend(strength, _background(pattern, *part.shape))
    axes.imshow(picture.tolist(), interpolation="nearest", extent=(0, length, num_queries, 0))
    if length <= 72:
        _rule(axes, length, num_queries)
    _frame_row(axes, query, length)
    axes.set_xlabel("key position", color=INK)
    if first:
        axes.set_ylabel("query position", color=INK)
    dress(axes)
    axes.yaxis.set_major_locator(_whole_numbers())


def _rule(axes: Any, columns: int, rows: int) -> None:
    """White lines between the cells; as minor ticks they would take most of a picture's time."""
    from matplotlib.collections import LineCollection

    lines = [((at, 0), (at, rows)) for at in range(columns + 1)]
    lines += [((0, at), (columns, at)) for at in range(rows + 1)]
    ruled = LineCollection(lines, colors="white", linewidths=0.4, zorder=1.5)
    axes.add_collection(ruled, autolim=False)


def _frame_row(axes: Any, query: int, length: int) -> None:
    """A frame round the row of one query, or a line where rows are thinner than that."""
    from matplotlib.patches import Rectangle

    thick = length / 300
    height = 1.0 if thick < 1 else thick
    axes.add_patch(
        Rectangle(
            (0, query + 0.5 - height / 2),
            length,
            height,
            facecolor="none" if thick < 0.6 else QUERY,
            edgecolor=QUERY,
            linewidth=1.3 if thick < 0.6 else 0,
            zorder=5,
        )
    )


def _background(pattern: Pattern, rows: int, columns: int) -> Tensor:
    """(rows, columns, 3): white, or grey where a causal pattern may not look."""
    picture = _colour(EMPTY).expand(rows, columns, 3).clone()
    if pattern.is_causal:
        picture[torch.ones(rows, columns, dtype=torch.bool).triu(1)] = _colour(FUTURE)
    return picture


def _blend(share: Tensor, background: Tensor) -> Tensor:
    return background + share[..., None] * (_colour(READ) - background)


def _draw_canvas(axes: Any, pattern: Pattern, canvas: Canvas, length: int, query: int) -> None:
    """The image with what the query reads, and the text tokens as rows above it."""
    keys = torch.arange(length)
    allowed = pattern.allows(torch.tensor(query), keys)
    read = allowed.any(0) if allowed.dim() == 2 else allowed.expand(length)
    query = own_key(pattern, query)
    colours = _colours(pattern, read, query)
    image = torch.ones(canvas.length, 3)
    image[:length] = colours
    text, pixels = image[: canvas.text], image[canvas.text :]
    pixels = pixels.view(canvas.frames, canvas.height, canvas.width, 3)
    if canvas.frames > 1:
        _draw_frames(axes, pixels, text, canvas, query)
    else:
        _draw_image(axes, pixels[0], text)
    place = canvas.place(query)[canvas.frames == 1 :]
    reads_itself = "" if bool(read[query]) else ", not itself"
    word = "pixel" if canvas.frames == 1 else "voxel"
    axes.set_title(f"what {word} {place} reads{reads_itself}", color=INK, fontsize=10)
    axes.set_xlabel("column", color=INK)
    axes.set_ylabel("row" if canvas.frames == 1 else "row, frame by frame", color=INK)
    dress(axes)
    if canvas.frames > 1:
        axes.set_xticks([])
        axes.set_yticks([])


def _colours(pattern: Pattern, read: Tensor, query: int) -> Tensor:
    """(keys, 3): what is read, the query itself, and what it may not look at."""
    colours = _colour(EMPTY).repeat(len(read), 1)
    if pattern.is_causal:
        colours[query + 1 :] = _colour(FUTURE)
    colours[read] = _colour(READ)
    colours[query] = _colour(QUERY)
    return colours


def _draw_image(axes: Any, pixels: Tensor, text: Tensor) -> None:
    """pixels (height, width, 3) under the rows of the text (tokens, 3)."""
    height, width = pixels.shape[:2]
    text_rows = -(-len(text) // width)
    gap = 1 if text_rows else 0
    above = torch.ones((text_rows + gap) * width, 3)
    above[: len(text)] = text
    picture = torch.cat([above.view(-1, width, 3), pixels])
    extent = (0, width, height, -text_rows - gap)
    axes.imshow(picture.tolist(), interpolation="nearest", extent=extent)
    _pixel_grid(axes, Canvas(height, width, len(text)), text_rows, gap)


def _draw_frames(axes: Any, pixels: Tensor, text: Tensor, canvas: Canvas, query: int) -> None:
    """pixels (frames, height, width, 3), each under its number, and the text (tokens, 3) above."""
    own, count = canvas.place(query)[0], min(MAX_FRAMES, canvas.frames)
    first = min(max(0, own - count // 2), canvas.frames - count)
    gap = 1 + canvas.height // 4
    columns = max(1, round((count * (canvas.height + gap) / (canvas.width + 1)) ** 0.5))
    rows = -(-count // columns)
    sheet = torch.ones(rows * (canvas.height + gap), columns * (canvas.width + 1) - 1, 3)
    for number in range(count):
        row, column = divmod(number, columns)
        top, left = row * (canvas.height + gap) + gap, column * (canvas.width + 1)
        sheet[top : top + canvas.height, left : left + canvas.width] = pixels[first + number]
        lines: dict[str, Any] = {"color": MUTED, "linewidth": 0.35, "alpha": 0.7}
        if max(sheet.shape[:2]) <= 144:
            right, bottom = left + canvas.width, top + canvas.height
            axes.vlines(range(left, right + 1), top, bottom, **lines)
            axes.hlines(range(top, bottom + 1), left, right, **lines)
        name = f"frame {first + number}"
        axes.text(left, top - 0.3, name, ha="left", va="bottom", fontsize=7, color=INK)
    height, width = sheet.shape[:2]
    above = torch.ones(-(-len(text) // width) * width, 3)
    above[: len(text)] = text
    picture = torch.cat([above.view(-1, width, 3), sheet])
    extent = (0, width, height, height - len(picture))
    axes.imshow(picture.tolist(), interpolation="nearest", extent=extent)


def own_key(pattern: Pattern, query: int) -> int:
    """The key at the place of a query; another number only where queries are strided."""
    if not isinstance(pattern, Halo):
        return query
    key = 0
    for at, side in zip(
        pattern.query_coordinates(torch.tensor(query)), pattern.sides, strict=True
    ):
        key = key * side + int(at)
    return key


def _pixel_grid(axes: Any, canvas: Canvas, text_rows: int, gap: int) -> None:
    """Lines between pixels, a frame round the image, and a label for the text."""
    if max(canvas.height, canvas.width) <= 72:
        lines: dict[str, Any] = {"color": MUTED, "linewidth": 0.35, "alpha": 0.7}
        axes.vlines(range(canvas.width + 1), 0, canvas.height, **lines)
        axes.hlines(range(canvas.height + 1), 0, canvas.width, **lines)
    axes.set_yticks(range(0, canvas.height + 1, max(1, -(-canvas.height // 7))))
    if text_rows:
        axes.set_ylim(canvas.height, -text_rows - gap)
        axes.text(
            canvas.width / 2,
            -gap / 2,
            f"{canvas.text} text tokens above",
            ha="center",
            va="center",
            fontsize=8,
            color=INK,
        )


def dress(axes: Any) -> None:
    axes.xaxis.set_major_locator(_whole_numbers())
    axes.tick_params(colors=INK, labelsize=8)
    for spine in axes.spines.values():
        spine.set_color(MUTED)
        spine.set_linewidth(0.6)


def _whole_numbers() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(integer=True, nbins=7, min_n_ticks=1)


def _colour(name: str) -> Tensor:
    """ "#rrggbb" as three numbers from 0 to 1."""
    return torch.tensor([int(name[i : i + 2], 16) / 255 for i in (1, 3, 5)])
