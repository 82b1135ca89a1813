"""`foveal predict RUN IMAGE...`: what a run's model sees in pictures."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from foveal.cli.parsing import parse


@dataclass(kw_only=True)
class Options:
    """Name the likeliest classes of pictures.

    Attributes:
        run: the run's folder, or "latest".
        images: files of pictures.
        top: classes to name for each.
    """

    run: Annotated[str, tyro.conf.Positional]
    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    top: int = 5


def main(arguments: list[str]) -> int:
    """Print a table for each picture; 2 if none could be read."""
    options = parse(Options, arguments, "predict")
    if not options.images:
        raise ValueError("name at least one picture: foveal predict RUN IMAGE")
    from foveal.recipes.image_runs import predict
    from foveal.recipes.runs import find_run

    found = predict(find_run(options.run), options.images, options.top)
    for one in found:
        if one.problem:
            print(f"foveal: {one.problem}", file=sys.stderr)
            continue
        print(one.path)
        for name, share in one.ranking:
            print(f"  {share:6.1%}  {name}")
    return 0 if any(one.ranking for one in found) else 2
