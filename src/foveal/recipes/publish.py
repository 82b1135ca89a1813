"""What the world is told of a run: data, scores, command and settings, without paths of home."""

from __future__ import annotations

import json
import ntpath
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from foveal.recipes.assets import FILES
from foveal.recipes.config import load_recipe
from foveal.recipes.kind import Run
from foveal.recipes.report import EVALUATION, RESULT, newest_score
from foveal.recipes.runs import open_run, read_json
from foveal.recipes.settings import SECTIONS, RunConfig
from foveal.training.checkpoints import SETTINGS

_TOLD = ("classes", "pictures", "length")
"""Facts of a run that a card repeats."""


def publish(run: Run | Path | str) -> tuple[dict[str, Any], dict[str, str]]:
    """What a run tells of its model.

    Returns:
        Keywords of `foveal.integrations.hub.Card`; and files that belong beside the weights, name
        -> text.

    Raises:
        ValueError: there is no such run, or what it holds is damaged.
    """
    run = open_run(run)
    public = public_settings(run.config)
    texts = {name: (run.folder / name) for name in FILES.values()}
    files = {name: path.read_text("utf-8") for name, path in texts.items() if path.is_file()}
    files[SETTINGS] = json.dumps(public, indent=2) + "\n"
    about = {
        "command": command(run.config),
        "settings": {name: public[name] for name in SECTIONS},
        "tags": [run.config.task],
        **_results(run),
    }
    return {name: value for name, value in about.items() if value}, files


def _results(run: Run) -> dict[str, Any]:
    """Data and scores, of the newest of the files that tell them."""
    result, score = read_json(run.folder / RESULT) or {}, read_json(run.folder / EVALUATION)
    try:
        newest = newest_score(result, score)
        facts = dict(result.get("facts", {}))
        scores = newest.get("scores", newest)
        names = [*(run.kind.labels or run.kind.forms)] or [run.kind.score]
        about = {
            "data": facts.get("training data", str(run.config.data.path)),
            "scores": {name: scores[name] for name in names if _is_number(scores.get(name))},
            "scored_on": newest.get("data") or facts.get("held-out data", ""),
            "facts": {name: facts[name] for name in _TOLD if name in facts},
        }
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"{RESULT} or {EVALUATION} in {run.folder} is not as foveal writes it ({error!r}); "
            "delete the damaged one."
        ) from error
    if "checkpoint" in newest:
        about["facts"]["checkpoint"] = str(newest["checkpoint"])
    found: dict[str, Any] = _map_texts(about)
    return found


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def public_settings(config: RunConfig) -> dict[str, Any]:
    """The settings of a run, of whose paths only the names are left."""
    found: dict[str, Any] = _map_texts(config.to_dict())
    return found


def _map_texts(value: Any) -> Any:
    if isinstance(value, str):
        return _public(value)
    if isinstance(value, Mapping):
        return {name: _map_texts(one) for name, one in value.items()}
    return [_map_texts(one) for one in value] if isinstance(value, list) else value


_PATH = re.compile(r"(?:^|(?<=[\s:]))(?!//)(?:~?/|\\\\|[A-Za-z]:[\\/])[^,:]*")
"""An absolute path, also behind a kind such as hf:imagefolder:, but no address of the web."""


def _public(text: str) -> str:
    """A text in which every absolute path is only a name: nobody's home is told."""
    return _PATH.sub(lambda found: ntpath.basename(found[0].rstrip("/\\")), text)


def command(config: RunConfig) -> str:
    """The line that trains such a run: its recipe, and what it has otherwise."""
    words = ["foveal", "train", _public(config.recipe)]
    try:
        recipe = load_recipe(config.recipe).to_dict()
    except (OSError, ValueError):  # a file that is gone, or settings made in Python
        return shlex.join(words)
    given = config.to_dict()
    for section in SECTIONS:
        usual = recipe[section] if recipe["task"] == given["task"] else {}
        for name, value in given[section].items():
            if name not in usual or usual[name] != value:
                words += _option(f"--{section}.{name}", _map_texts(value), section)
    return shlex.join(words)


def _option(flag: str, value: Any, section: str) -> Iterator[str]:
    """A setting as `foveal train` reads it."""
    if section != "model" and isinstance(value, bool):
        yield flag if value else f"{flag.rpartition('.')[0]}.no-{flag.rpartition('.')[2]}"
    else:
        yield from (flag, str(value))
