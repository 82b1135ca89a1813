"""`foveal report RUN`: rewrite the report and say where everything lies."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import tyro

from foveal.cli.parsing import parse


@dataclass(kw_only=True)
class Options:
    """Rewrite a run's report.html from what its folder holds, and name its pictures.

    Attributes:
        run: the run's folder, or "latest".
        json: print the paths as JSON.
    """

    run: Annotated[str, tyro.conf.Positional]
    json: bool = False


def main(arguments: list[str]) -> int:
    """Print the paths of the report and of its pictures."""
    options = parse(Options, arguments, "report")
    from foveal.recipes.report import pictures_of, write_run_report
    from foveal.recipes.runs import find_run

    folder = find_run(options.run)
    report = write_run_report(folder)
    pictures = [str(picture.resolve()) for picture in pictures_of(folder)]
    page = None if report is None else str(report.resolve())
    if options.json:
        print(json.dumps({"report": page, "pictures": pictures}, indent=2))
        return 0
    if page is not None:
        print(f"report   {page}")
    for picture in pictures:
        print(f"picture  {picture}")
    return 0
