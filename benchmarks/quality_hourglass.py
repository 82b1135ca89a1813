"""Hourglass beside a plain transformer: the same wall-clock, data, width and optimiser.

    python benchmarks/quality_hourglass.py [--minutes 10] [--data stdlib input.txt] [--seeds 0 1 2]

Trains the recipes quality-hourglass and quality-transformer in turn for each data set and seed,
and writes a table (table.md), the curves of both in one picture a data set, and the runs
themselves into --output. Runs that are there already are not trained again.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from foveal.draw.curves import Curve, draw_curves
from foveal.recipes.config import load_recipe
from foveal.recipes.report import RESULT
from foveal.recipes.run import train
from foveal.recipes.runs import read_json
from foveal.training.metrics import read_metrics

RECIPES = {"Hourglass": "quality-hourglass", "transformer": "quality-transformer"}
POINTS = 60


def run(recipe: str, data: str, seed: int, minutes: float, folder: Path) -> Path:
    """The folder of a finished run."""
    if not (folder / RESULT).exists():
        config = load_recipe(recipe)
        config = dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, path=data),
            training=dataclasses.replace(
                config.training, seed=seed, time_budget=60 * minutes, device="auto"
            ),
        )
        train(config, str(folder))
    return folder


def curve(folder: Path) -> list[tuple[float, float]]:
    """(minutes, held-out bits per byte) over a run; the last point scores all held-out bytes."""
    points, elapsed = [], 0.0
    for entry in read_metrics(folder):
        elapsed = entry.get("elapsed", elapsed)
        for key in ("valid/bits_per_byte", "final/bits_per_byte"):
            if key in entry:
                points.append((elapsed / 60, entry[key]))
    return points


def mean_curve(runs: Sequence[Path], minutes: float) -> tuple[list[float], list[float]]:
    """The mean over runs at each of some moments, straight between two scores of a run."""
    curves = [curve(folder) for folder in runs]
    first = max(points[0][0] for points in curves)
    x = np.linspace(first, max(first, minutes), POINTS)
    y = np.mean([np.interp(x, *zip(*points, strict=True)) for points in curves], axis=0)
    return x.tolist(), y.tolist()


def row(data: str, name: str, runs: Sequence[Path]) -> str:
    results = [read_json(folder / RESULT) for folder in runs]
    scores = [result["bits_per_byte"] for result in results]
    spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
    steps = statistics.mean(result["steps"] for result in results)
    each = ", ".join(f"{score:.3f}" for score in scores)
    return (
        f"| {data} | {name} | {results[0]['facts']['parameters']} | {steps:,.0f} | "
        f"{statistics.mean(scores):.3f} +- {spread:.3f} | {each} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--data", nargs="+", default=["stdlib"], help="texts; stdlib is embedded")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/quality-hourglass"))
    args = parser.parse_args()
    lines = [
        f"Held-out bits per byte after {args.minutes:g} minutes of training each.\n",
        "| data | model | parameters | steps | bits per byte | by seed |",
        "|---|---|---|---|---|---|",
    ]
    for data in args.data:
        label, curves = Path(data).stem, []
        # models take turns, so that a machine that slows down slows both
        runs = {
            (name, seed): run(
                recipe, data, seed, args.minutes, args.output / f"{label}-{recipe}-{seed}"
            )
            for seed in args.seeds
            for name, recipe in RECIPES.items()
        }
        for name in RECIPES:
            folders = [runs[name, seed] for seed in args.seeds]
            lines.append(row(label, name, folders))
            curves.append(Curve(name, *mean_curve(folders, args.minutes)))
        draw_curves(
            curves,
            args.output / f"{label}.png",
            xlabel="minutes",
            ylabel="bits per byte, held out",
        )
    table = "\n".join(lines) + "\n"
    (args.output / "table.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
