"""Pictures of biases by offset: what each pair of a pattern gains, and one query of an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foveal.draw.patterns import (
    Canvas,
    check_drawable,
    chosen_query,
    dress,
    natural_length,
    own_key,
    shown_canvas,
)
from foveal.draw.style import EMPTY, INK, QUERY, as_png
from foveal.ops import TableBias, alibi
from foveal.ops.table import Alibi
from foveal.patterns import Pattern

KINDS = ("rows", "alibi", "t5")
MOST = 1024
"""Positions that are drawn pair by pair."""


def draw_bias(
    pattern: Pattern,
    bias: TableBias | Alibi | str = "rows",
    length: int | None = None,
    path: str | Path | None = None,
) -> bytes | Path:
    """Draw what the first head of a bias adds to the logits of the pairs that a pattern allows.

    On images a second panel shows what one pixel (orange) gains with each pixel that it reads, of
    a clip within its own frame.

    Args:
        pattern: whose pairs.
        bias: a TableBias, or alibi(heads); or "rows": the number of each pair's row in a
            TableBias of the pattern; "t5": in the 32 buckets of T5; "alibi": of one head.
        length: positions to draw; None: see `natural_length`.
        path: where the PNG goes; None returns its bytes.

    Returns:
        the path, or the bytes of the PNG.

    Raises:
        ValueError: another word, a length that is not between 1 and 1,024, or a bias that counts
            single keys where the pattern pools them.
        ModuleNotFoundError: matplotlib is missing (`pip install "foveal[draw]"`).
    """
    length = natural_length(pattern) if length is None else length
    if not 1 <= length <= MOST:
        raise ValueError(f"length must be between 1 and {MOST} to draw a bias, got {length=}.")
    check_drawable(pattern, length)
    label = "row of the table" if bias == "rows" else "what the logit gains"
    figure = _figure(pattern, gained(pattern, bias, length), shown_canvas(pattern, length), label)
    return as_png(figure, path)


def gained(pattern: Pattern, bias: TableBias | Alibi | str, length: int) -> Tensor:
    """What each pair gains, NaN where there is none: (queries, keys)."""
    if isinstance(bias, str):
        bias = _named(pattern, bias, length)
    q = torch.arange(pattern.num_queries(length))[:, None]
    k = torch.arange(length)[None]
    values = bias.at(pattern, q, k)[0].detach().double()
    allowed = pattern.mask(len(q), length)
    allowed = allowed if pattern.heads is None else allowed[0]
    return values.expand(allowed.shape).masked_fill(~allowed, torch.nan)


def _named(pattern: Pattern, name: str, length: int) -> TableBias | Alibi:
    if name not in KINDS:
        raise ValueError(f"bias must be one of {', '.join(KINDS)}, got bias={name!r}.")
    if pattern.pools and name != "rows":
        raise ValueError(
            f"bias must be 'rows' for {pattern}, which pools keys, got bias={name!r}."
        )
    if name == "alibi":
        return alibi(1, torch.full((1,), 0.25))
    if name == "t5":
        return TableBias.t5(torch.arange(32.0)[:, None], bidirectional=not pattern.is_causal)
    rows = 2 * length - 1 if pattern.bias_size is None else pattern.bias_size
    return TableBias(torch.arange(float(rows))[:, None])


def _figure(pattern: Pattern, values: Tensor, canvas: Canvas | None, label: str) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 if canvas is None else 8.6, 3.6), layout="constrained")
    axes = figure.subplots(1, 1 if canvas is None else 2, squeeze=False)[0]
    shown = axes[0].imshow(values.numpy(), cmap=_colors(), interpolation="nearest")
    axes[0].set_xlabel("key", color=INK)
    axes[0].set_ylabel("query", color=INK)
    if canvas is not None:
        limits = {"vmin": shown.norm.vmin, "vmax": shown.norm.vmax}
        query = chosen_query(pattern, values.shape[1], canvas)
        frame, row, column = canvas.place(own_key(pattern, query))
        image = _frame(values[query], canvas, frame)
        axes[1].imshow(image.numpy(), cmap=_colors(), **limits)
        axes[1].plot(column, row, "s", color=QUERY, markersize=7, markeredgecolor="white")
        where = "" if canvas.frames == 1 else f" within its frame, {frame}"
        axes[1].set_xlabel(f"what one pixel gains{where}", color=INK)
    for one in axes:
        dress(one)
    figure.colorbar(shown, ax=list(axes), shrink=0.9).set_label(label, color=INK)
    return figure


def _frame(gains: Tensor, canvas: Canvas, number: int) -> Tensor:
    """What a query gains (keys,) in a frame: (height, width), NaN where there is no pair."""
    size = canvas.height * canvas.width
    own = gains[canvas.text + number * size :][:size]
    own = torch.nn.functional.pad(own, (0, size - len(own)), value=torch.nan)
    return own.view(canvas.height, canvas.width)


def _colors() -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"].with_extremes(bad=EMPTY)
