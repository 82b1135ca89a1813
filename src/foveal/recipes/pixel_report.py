"""The parts of a run's report that only pixel models have."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

SAMPLES, COMPLETIONS = "samples.png", "completions.png"
"""Names of the pictures that a model draws, in the run's folder of pictures."""

_TITLES = {
    SAMPLES: "Drawn value by value",
    COMPLETIONS: "Pictures, and their lower halves drawn by the model",
}


def pixel_sections(pictures: Path, evaluation: dict[str, Any] | None) -> Iterator[Any]:
    """What the model has drawn, and its score if it has been scored.

    Args:
        pictures: the folder of pictures.
        evaluation: of evaluation.json.
    """
    from foveal.draw.report import Section

    drawn = [(title, pictures / name) for name, title in _TITLES.items()]
    drawn = [(title, path) for title, path in drawn if path.exists()]
    if drawn:
        yield Section("Pictures", pictures=drawn)
    if evaluation:
        rows = {
            "bits per dimension": f"{evaluation['bits_per_dim']:.3f}",
            "scored": f"{evaluation['images']:,} pictures of {evaluation['data']}, "
            f"checksum {evaluation['checksum']}",
            "checkpoint": evaluation["checkpoint"],
        }
        yield Section("Held-out score", rows=rows)
