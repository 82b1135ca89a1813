"""What the reports of several tasks have in common: curves over the steps, rows of a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foveal.draw.curves import Curve, draw_curves, smooth

Entries = Sequence[Mapping[str, float]]
"""Of metrics.jsonl."""

Forms = Mapping[str, tuple[str, str]]
"""Label and format of scores, by name."""


def loss_curves(entries: Entries, scale: float = 1.0) -> list[Curve]:
    """The training loss, as it is and smoothed."""
    steps = [entry["step"] for entry in entries if "loss" in entry]
    losses = [entry["loss"] * scale for entry in entries if "loss" in entry]
    return [Curve("", steps, losses, "faint"), Curve("training", steps, smooth(losses))]


def score_curve(entries: Entries, name: str, label: str, scale: float = 1.0) -> list[Curve]:
    """A metric on held-out data; none where there is nothing to show."""
    points = [
        (entry["step"], entry[key] * scale)
        for entry in entries
        for key in (f"valid/{name}", f"final/{name}")
        if key in entry
    ]
    if not points:
        return []
    x, y = zip(*points, strict=True)
    return [Curve(label, x, y, "points")]


def chart(title: str, curves: list[Curve], path: Path, ylabel: str) -> list[tuple[str, Path]]:
    """Curves over the steps with their title; none where there are none."""
    if not any(len(curve.x) for curve in curves):
        return []
    return [(title, draw_curves(curves, path, xlabel="step", ylabel=ylabel))]


def shown(scores: Mapping[str, Any], forms: Forms) -> dict[str, str]:
    """Label -> value of the scores that there are, in the order of `forms`."""
    return {
        label: form.format(scores[name])
        for name, (label, form) in forms.items()
        if scores.get(name) is not None
    }


def scored(score: Mapping[str, Any], count: int, things: str) -> dict[str, str]:
    """What a score was measured on, and of which weights."""
    return {
        "scored": f"{count:,} {things} of {score['data']}, checksum {score['checksum']}",
        "checkpoint": score["checkpoint"],
    }


def heading(score: Mapping[str, Any], count: int, things: str) -> list[str]:
    """The first lines of the table of a score."""
    skipped = f" ({score['skipped']:,} left out)" if score.get("skipped") else ""
    return [
        f"{score['data']} (checksum {score['checksum']})",
        f"{count:,} {things}{skipped}, {score['seconds']:.0f} s, {score['checkpoint']}",
        "",
    ]
