"""`foveal report RUN`: rewrite the report and say where everything lies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from foveal.cli.parsing import parse


@dataclass(kw_only=True)
class Options:
    """Rewrite a run's report.html from what its folder holds, and name its pictures.

    Attributes:
        run: the run's folder, or "latest".
    """

    run: Annotated[str, tyro.conf.Positional]


def main(arguments: list[str]) -> int:
    """Print the paths of the report and of its pictures."""
    options = parse(Options, arguments, "report")
    from foveal.recipes.report import pictures_of, write_run_report
    from foveal.recipes.runs import find_run

    folder = find_run(options.run)
    report = write_run_report(folder)
    if report is not None:
        print(f"report   {report.resolve()}")
    for picture in pictures_of(folder):
        print(f"picture  {picture.resolve()}")
    return 0
