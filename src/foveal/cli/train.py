"""`foveal train RECIPE [OPTIONS]`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foveal.training import Outcome

_HELP = """usage: foveal train RECIPE [OPTIONS]

Trains a recipe and ends with a report. RECIPE is the name of a shipped recipe (foveal list) or the
path of a TOML file; foveal train RECIPE --help lists its options with its values."""


def main(arguments: list[str]) -> int:
    """Train a recipe; 130 if it was interrupted, its state saved."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(_HELP)
        return 0
    if not arguments or arguments[0].startswith("-"):
        raise ValueError("name the recipe first: foveal train RECIPE; foveal list shows them.")
    from foveal.recipes.config import load_recipe

    config = load_recipe(arguments[0])
    from foveal.cli.options import parse_overrides

    config, output, resume = parse_overrides(config, arguments[1:])
    from foveal.recipes.run import train
    from foveal.training.interrupt import Interrupted

    try:
        folder, outcome = train(config, output, resume)
    except Interrupted as stop:
        print(
            f"\ninterrupted at step {stop.step:,}; go on with: foveal train {arguments[0]} "
            f"--output {stop.folder} --resume auto",
            file=sys.stderr,
        )
        return 130
    if outcome.is_main:
        _print_outcome(folder, outcome)
    return 0


def _print_outcome(folder: Path, outcome: Outcome) -> None:
    scores = "  ".join(f"{name} {value:.4f}" for name, value in outcome.metrics.items())
    print(f"trained {outcome.step:,} steps in {outcome.elapsed:.1f} s;  held out: {scores}")
    print(f"run        {folder}")
    print(f"checkpoint {outcome.checkpoint}")
    if (folder / "report.html").exists():
        print(f"report     {folder / 'report.html'}")
