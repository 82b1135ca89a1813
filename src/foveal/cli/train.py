"""`foveal train RECIPE [OPTIONS]`."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foveal.recipes.settings import RunConfig
    from foveal.training import Outcome

_HELP = """usage: foveal train RECIPE [OPTIONS]

Trains a recipe and ends with a report. RECIPE is the name of a shipped recipe (foveal list) or the
path of a TOML file; foveal train RECIPE --help lists its options with its values.

A run that was stopped goes on with its own settings: foveal train --resume FOLDER"""


def main(arguments: list[str]) -> int:
    """Train a recipe; 130 if it was interrupted, its state saved."""
    if arguments[:1] in (["-h"], ["--help"]):
        print(_HELP)
        return 0
    from foveal.training.processes import StoppedElsewhereError, before_group

    try:
        # only the first process need see recipe and run
        start = json.loads(before_group(lambda: json.dumps(_start(arguments))))
    except StoppedElsewhereError:  # the process that failed says why
        return 2
    return _train(**start)


def _start(arguments: list[str]) -> dict[str, Any]:
    """What is to be trained, where, and whether a run goes on, as JSON can hold it.

    Raises:
        ValueError: no such recipe or run, or options that do not fit.
    """
    from foveal.cli.options import parse_overrides

    recipe, rest, going_on = _find_start(arguments)
    base = _load_start(recipe, going_on)
    config, output, resume = parse_overrides(base, rest)
    if going_on is not None:
        _refuse_other_settings(base, config, going_on)
        _refuse_strange_code(config, arguments, going_on)
        output = str(going_on)
        # a recipe that was edited since changes nothing
        print(f"going on in {going_on} with the settings of its config.json", flush=True)
    settings = config.to_dict()
    return {"recipe": recipe, "settings": settings, "output": output, "resume": resume != "never"}


def _train(recipe: str, settings: dict[str, Any], output: str | None, resume: bool) -> int:
    """Train what `_start` has found; returns the exit code."""
    from foveal.recipes.config import config_from_dict
    from foveal.recipes.run import train
    from foveal.training.interrupt import Interrupted
    from foveal.training.processes import StoppedElsewhereError

    config = config_from_dict(settings, where=f"recipe {recipe}")
    try:
        folder, outcome = train(config, output, resume)
    except Interrupted as stop:
        if stop.is_main:
            again = _command_to_resume(recipe, stop.folder)
            print(f"\ninterrupted at step {stop.step:,}; go on with: {again}", file=sys.stderr)
        return 130
    except StoppedElsewhereError:  # the process that failed says why
        return 2
    if outcome.is_main:
        _print_outcome(folder, outcome)
    return 0


def _find_start(arguments: list[str]) -> tuple[str, list[str], Path | None]:
    """The recipe, the other arguments, and the folder of the run that is to go on, or None.

    Raises:
        ValueError: no recipe, or --resume FOLDER names none.
    """
    from foveal.common.files import expanded
    from foveal.recipes.runs import CONFIG, find_run, latest_folder, load_config

    output, resume = _value_of("--output", arguments), _value_of("--resume", arguments)
    folder = None
    if resume not in (None, "auto", "never"):
        folder = find_run(str(resume))
        if output is not None and expanded(output).resolve() != folder.resolve():
            raise ValueError(
                f"--resume {resume} goes on in that folder, so --output={output!r} cannot be "
                "another one; leave it out."
            )
    if not arguments or arguments[0].startswith("-"):
        if folder is None:
            raise ValueError("name the recipe first: foveal train RECIPE; foveal list shows them.")
        return load_config(folder).recipe, arguments, folder
    recipe, rest = arguments[0], arguments[1:]
    if resume == "auto":
        folder = latest_folder(recipe) if output is None else expanded(output)
    if folder is not None and not (folder / CONFIG).exists():
        folder = None
    return recipe, rest, folder


def _value_of(option: str, arguments: list[str]) -> str | None:
    """The value that an option is given last, as `--option VALUE` or `--option=VALUE`."""
    found = None
    for number, word in enumerate(arguments):
        if word == option and number + 1 < len(arguments):
            found = arguments[number + 1]
        elif word.startswith(option + "="):
            found = word.partition("=")[2]
    return found


def _load_start(recipe: str, going_on: Path | None) -> RunConfig:
    """The settings that the command line changes: of the recipe, or of the run that goes on.

    Raises:
        ValueError: no such recipe, or the run is one of another.
    """
    from foveal.recipes.config import load_recipe
    from foveal.recipes.older import config_to_go_on

    if going_on is None:
        return load_recipe(recipe)
    config = config_to_go_on(going_on)
    if Path(config.recipe).stem != Path(recipe).stem:
        raise ValueError(
            f"the run in {going_on} trains the recipe {config.recipe!r}, got {recipe!r}; "
            "name that recipe, or another folder."
        )
    return config


def _refuse_other_settings(saved: RunConfig, given: RunConfig, folder: Path) -> None:
    """Raise ValueError for an option that a run which goes on cannot take up."""
    from foveal.recipes.config import absolute_paths
    from foveal.recipes.settings import first_difference

    # the same path may be typed as it was for the start, and stand there from the root on
    both = [absolute_paths(config).to_dict() for config in (saved, given)]
    name = first_difference(*both)
    if name is not None:
        section, _, key = name.partition(".")
        values = [config[section].get(key) for config in both]
        raise ValueError(
            f"the run in {folder} was started with another {name}, {values[0]!r}, got "
            f"{values[1]!r}; leave the option out, or start a new run in another folder."
        )


def _refuse_strange_code(config: RunConfig, arguments: list[str], folder: Path) -> None:
    """Raise ValueError for code that the folder of a run names, and nobody who typed this.

    A folder may come from elsewhere: it says how a run goes on, but not what is executed. A recipe
    that is named, and an option, are words of the user.
    """
    from foveal.recipes.config import functions_of, load_recipe

    typed = {_value_of("--data.transform", arguments)}
    if not arguments[0].startswith("-"):
        with contextlib.suppress(ValueError, OSError):  # a recipe that has moved says nothing
            typed |= functions_of(load_recipe(arguments[0]))
    strange = sorted(functions_of(config) - typed)
    if strange:
        raise ValueError(
            f"the run in {folder} trains with the function {strange[0]!r}, which is code that its "
            f"folder names; if you trust it, say so: --data.transform {strange[0]}"
        )


def _command_to_resume(recipe: str, folder: Path) -> str:
    """What to type to go on; the run's config.json remembers the options."""
    count = os.environ.get("LOCAL_WORLD_SIZE", "1")
    start = "foveal"
    if count != "1":
        start = f"torchrun --nproc-per-node {count} -m foveal.cli"
    elif Path(sys.argv[0]).stem != "foveal":
        start = "python -m foveal.cli"
    where = shlex.quote(str(folder))
    return f"{start} train {shlex.quote(recipe)} --output {where} --resume auto"


def _print_outcome(folder: Path, outcome: Outcome) -> None:
    scores = "  ".join(f"{name} {value:.4f}" for name, value in outcome.metrics.items())
    print(f"trained {outcome.step:,} steps in {outcome.elapsed:.1f} s;  held out: {scores}")
    print(f"run        {folder}")
    print(f"checkpoint {outcome.checkpoint}")
    if (folder / "report.html").exists():
        print(f"report     {folder / 'report.html'}")
