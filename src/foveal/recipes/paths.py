"""Paths in a configuration, made absolute, so that a run can be used from any folder."""

from __future__ import annotations

import dataclasses
import glob
import os
from pathlib import Path

from foveal.data.emoji import EMOJI
from foveal.data.sequence_sources import LISTOPS
from foveal.data.sources import STANDARD_LIBRARY
from foveal.recipes.config import recipe_names
from foveal.recipes.settings import RunConfig

_EMBEDDED = (STANDARD_LIBRARY, EMOJI, LISTOPS)
_FOLDER = "hf:imagefolder:"
_PATHS, _STAGES = ("path", "valid"), ("vae", "clip")


def absolute_paths(config: RunConfig) -> RunConfig:
    """The configuration with every path that it names made absolute; other names stay.

    Raises:
        ValueError: an empty path, which would mean the present folder.
    """
    if getattr(config.data, "path", None) == "":
        raise ValueError("data.path must name the data, got data.path=''.")
    given = {name: getattr(config.data, name, None) for name in (*_PATHS, *_STAGES)}
    data = {
        name: absolute_path(value)
        for name, value in given.items()
        if isinstance(value, str) and not (name in _STAGES and _is_recipe(value))
    }
    recipe = config.recipe if _is_recipe(config.recipe) else absolute_path(config.recipe)
    return dataclasses.replace(
        config, recipe=recipe, data=dataclasses.replace(config.data, **data)
    )


def _is_recipe(name: str) -> bool:
    """Whether it is a recipe of the package, and no model's folder of that name stands here."""
    return name in recipe_names() and not (Path(name) / "config.json").is_file()


def absolute_path(name: str) -> str:
    """An absolute path for what is a file, a folder, a glob or a list of archives here."""
    if not name or name in _EMBEDDED:
        return name
    if name.startswith(_FOLDER):
        return _FOLDER + absolute_path(name.removeprefix(_FOLDER))
    plain = os.path.expanduser(name)
    if os.path.isabs(plain):
        return plain
    try:
        if Path(plain).exists():
            return os.path.abspath(plain)
    except (OSError, ValueError):  # too long, or with a null byte: no path
        return name
    if glob.has_magic(plain) or "{" in plain:
        # the folder itself may have characters that mean something in a pattern
        return os.path.join(glob.escape(os.getcwd()), plain)
    return name
