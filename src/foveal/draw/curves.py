"""Pictures of numbers: training curves and score comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foveal.draw.style import INK, MUTED, QUERY, READ, save_figure


@dataclass(frozen=True)
class Curve:
    """One line of a plot.

    Attributes:
        label: in the legend.
        x, y: its points.
        style: "line", "faint" (a noisy line behind another) or "points".
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "line"


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving average over about a fifteenth of the values, without a slow start."""
    weight = max(0.0, 1 - 15 / max(1, len(values)))
    out, total, mass = [], 0.0, 0.0
    for value in values:
        total = weight * total + (1 - weight) * value
        mass = weight * mass + (1 - weight)
        out.append(total / mass)
    return out


def draw_curves(
    curves: Sequence[Curve], path: Path, *, xlabel: str, ylabel: str, title: str = ""
) -> Path:
    """Plot curves into one PNG; the y axis follows the second half of a steep descent."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 3.6), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    colours = iter([READ, QUERY, "#2f855a", "#6b46c1"])
    for curve in curves:
        if curve.style == "faint":
            axes.plot(curve.x, curve.y, color=MUTED, alpha=0.35, lw=0.8)
            continue
        style: dict[str, Any] = {"lw": 1.8}
        if curve.style == "points":
            style = {"lw": 1.2, "marker": "o", "ms": 4.5}
        axes.plot(curve.x, curve.y, color=next(colours), label=curve.label, **style)
    _limit(axes, curves)
    _dress(axes, xlabel, ylabel, title)
    if any(curve.label for curve in curves):
        axes.legend(frameon=False, labelcolor=INK)
    return save_figure(figure, path)


def draw_bars(values: dict[str, float], path: Path, *, xlabel: str) -> Path:
    """Horizontal bars with their values, the first one emphasised."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 0.5 + 0.45 * len(values)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    names = list(values)
    colours = [READ] + [MUTED] * (len(names) - 1)
    bars = axes.barh(names, list(values.values()), color=colours, height=0.62)
    axes.bar_label(bars, fmt="%.3f", padding=4, color=INK, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    _dress(axes, xlabel, "", "")
    axes.grid(visible=False)
    return save_figure(figure, path)


def _limit(axes: Any, curves: Sequence[Curve]) -> None:
    """Let the first steps, far above the rest, leave the picture at the top."""
    values = sorted(y for curve in curves if curve.style != "faint" for y in curve.y)
    if len(values) >= 20:
        low, high = values[0], values[int(0.9 * len(values))]
        if values[-1] > high + (high - low):
            margin = 0.08 * (high - low)
            axes.set_ylim(low - margin, high + 2.5 * margin)


def _dress(axes: Any, xlabel: str, ylabel: str, title: str) -> None:
    axes.set_xlabel(xlabel, color=INK)
    axes.set_ylabel(ylabel, color=INK)
    if title:
        axes.set_title(title, color=INK, loc="left", fontsize=11)
    axes.grid(color="#e4e9ef", lw=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0, labelsize=9)
    for side in axes.spines.values():
        side.set_visible(False)
