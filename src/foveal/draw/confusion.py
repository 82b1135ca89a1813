"""A picture of which classes a model takes for which."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from foveal.draw.style import INK, save_figure, shown

_MAX_NUMBERS, _MAX_NAMES = 15, 40


def draw_confusion(counts: Sequence[Sequence[int]], classes: Sequence[str], path: Path) -> Path:
    """Draw a confusion matrix as a PNG; each row is scaled by the pictures of its true class.

    Args:
        counts: rows are true classes, columns what the model said.
        classes: their names.
        path: of the PNG.
    """
    from matplotlib.figure import Figure

    number = len(classes)
    side = min(9.0, 3.2 + 0.42 * number)
    figure = Figure(figsize=(side + 0.8, side), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if number <= _MAX_NAMES:
        names = [shown(name) for name in classes]
        axes.set_xticks(range(number), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(number), names)
    if number <= _MAX_NUMBERS:
        for row in range(number):
            for column in range(number):
                colour = "white" if shares[row][column] > 0.55 else INK
                text = str(counts[row][column]) if counts[row][column] else ""
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    axes.set_xlabel("what the model said", color=INK)
    axes.set_ylabel("true class", color=INK)
    axes.tick_params(colors=INK, length=0, labelsize=8)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class")
    bar.outline.set_visible(False)
    return save_figure(figure, path)
