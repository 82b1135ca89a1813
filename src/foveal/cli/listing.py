"""`foveal list`: what there is to train, to draw and to build."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable
from dataclasses import dataclass

from foveal.cli.parsing import parse


@dataclass(kw_only=True)
class Options:
    """List recipes, patterns and models.

    Attributes:
        json: print them as JSON: kind, then name, then what it is.
    """

    json: bool = False


def main(arguments: list[str]) -> int:
    """Print three short tables."""
    options = parse(Options, arguments, "list")
    from foveal.patterns.serialize import known_patterns
    from foveal.recipes.build import model_class, model_names
    from foveal.recipes.config import recipe_names, summary_of

    found = {
        "recipes": {name: summary_of(name) for name in recipe_names()},
        "patterns": {name: _first_line(cls) for name, cls in known_patterns().items()},
        "models": {name: _first_line(model_class(name)) for name in model_names()},
    }
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    for title, rows in found.items():
        _table(title, rows)
        if title == "recipes":
            _own_data(found["recipes"])
    return 0


_OWN_DATA = {
    "--data FILE": ("bytes",),
    "--data FOLDER of pictures": ("images", "pixels", "vae"),
    "--data FOLDER of pictures with captions": ("clip", "captions"),
}


def _own_data(recipes: Iterable[str]) -> None:
    """Say which recipes take which data of the user's own."""
    from foveal.recipes.config import load_recipe

    tasks = {name: load_recipe(name).task for name in recipes}
    for option, kinds in _OWN_DATA.items():
        names = ", ".join(name for name, task in tasks.items() if task in kinds)
        print(f"  Your own: {option}, for {names}")
    print()


def _table(title: str, rows: dict[str, str]) -> None:
    width = max(map(len, rows), default=0)
    print(title)
    for name, text in rows.items():
        print(f"  {name:<{width}}  {text}")
    print()


def _first_line(cls: type) -> str:
    return (inspect.getdoc(cls) or "").split("\n", 1)[0]
