"""The parts of a run's report that only classifiers have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any


def image_sections(
    pictures: Path, entries: Sequence[dict[str, float]], evaluation: dict[str, Any] | None
) -> Iterator[Any]:
    """Training curves, and the score with its confusion matrix.

    Args:
        pictures: the folder for them.
        entries: of metrics.jsonl.
        evaluation: of evaluation.json, if the run has been scored.
    """
    from foveal.draw.report import Section

    if any("loss" in entry for entry in entries):
        drawn = [("Training loss", draw_loss(entries, pictures / "training.png"))]
        accuracy = _draw_accuracy(entries, pictures / "accuracy.png")
        if accuracy is not None:
            drawn.append(("Right answers on held-out data", accuracy))
        yield Section("Training", pictures=drawn)
    if evaluation:
        from foveal.draw.confusion import draw_confusion

        unit = evaluation.get("unit", "pictures")
        path = draw_confusion(
            evaluation["confusion"], evaluation["classes"], pictures / "confusion.png"
        )
        rows = {
            "top-1": f"{evaluation['accuracy']:.2%}",
            "mean over classes": f"{evaluation['balanced_accuracy']:.2%}",
            "scored": f"{evaluation['images']:,} {unit} of {evaluation['data']}, "
            f"checksum {evaluation['checksum']}",
            "checkpoint": evaluation["checkpoint"],
        }
        if evaluation.get("top5") is not None:
            rows["top-5"] = f"{evaluation['top5']:.2%}"
        yield Section("Held-out score", pictures=[("What is taken for what", path)], rows=rows)


def draw_loss(
    entries: Sequence[dict[str, float]], path: Path, ylabel: str = "cross-entropy (nats)"
) -> Path:
    """A curve of the training loss."""
    from foveal.draw.curves import Curve, draw_curves, smooth

    steps = [entry["step"] for entry in entries if "loss" in entry]
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    curves = [Curve("", steps, losses, "faint"), Curve("training", steps, smooth(losses))]
    return draw_curves(curves, path, xlabel="step", ylabel=ylabel)


def _draw_accuracy(entries: Sequence[dict[str, float]], path: Path) -> Path | None:
    from foveal.draw.curves import Curve, draw_curves

    curves = []
    for name, label in (("accuracy", "top-1"), ("balanced_accuracy", "mean over classes")):
        points = [
            (entry["step"], 100 * entry[key])
            for entry in entries
            for key in (f"valid/{name}", f"final/{name}")
            if key in entry
        ]
        if points:
            x, y = zip(*points, strict=True)
            curves.append(Curve(label, x, y, "points"))
    return draw_curves(curves, path, xlabel="step", ylabel="right, %") if curves else None
