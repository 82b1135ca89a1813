"""What the world is told of a run."""

from __future__ import annotations

import dataclasses
import shlex

import pytest

from foveal.cli.options import parse_overrides
from foveal.recipes.config import absolute_paths, load_recipe, recipe_names
from foveal.recipes.publish import command, public_settings


def changed(config, **sections):
    """A configuration with other settings, a section at a time."""
    parts = {
        name: {**config.model, **values}
        if name == "model"
        else dataclasses.replace(getattr(config, name), **values)
        for name, values in sections.items()
    }
    return dataclasses.replace(config, **parts)


CHANGES = [
    {},
    {"training": {"steps": 7, "time_budget": None, "compile": True, "precision": "float32"}},
    {"optimizer": {"learning_rate": 1e-5, "name": "adamw"}, "training": {"seed": 3}},
    {"optimizer": {"clip": 0.5}, "data": {"path": "a file.txt"}},
]


@pytest.mark.parametrize("name", ["bytes-hourglass", "images-sepvit", "captions-dalle"])
@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_the_command_trains_the_same(name, change):
    """`foveal train` reads the line as the settings that it was made of."""
    config = changed(load_recipe(name), **change)
    words = shlex.split(command(config))
    assert words[:3] == ["foveal", "train", name]
    assert parse_overrides(load_recipe(name), words[3:])[0] == config
    assert bool(words[3:]) == bool(change)


def test_values_of_every_kind_are_read_back():
    """Lists, patterns, truth, texts with spaces and nothing at all."""
    config = changed(
        load_recipe("bytes-hourglass"),
        model={
            "depth": [1, 2, 1],
            "causal": True,
            "attn_resampling": True,
            "pattern": {"name": "SlidingWindow", "window": 8},
            "max_seq_len": None,
        },
        data={"path": "a file.txt"},
    )
    line = command(config)
    assert parse_overrides(load_recipe("bytes-hourglass"), shlex.split(line)[3:])[0] == config


def test_a_shipped_recipe_is_its_name():
    """Every recipe that comes along is told by its name alone."""
    for name in recipe_names():
        assert command(absolute_paths(load_recipe(name))) == f"foveal train {name}"


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/home/me/my data/x.txt", "x.txt"),
        ("/home/me/data/", "data"),
        ("~/data/*.txt", "*.txt"),
        ("hf:imagefolder:/home/me/pictures", "hf:imagefolder:pictures"),
        ("C:\\Users\\me\\x.txt", "x.txt"),
        ("\\\\host\\share\\x.txt", "x.txt"),
        ("/home/me/{000..009}.tar", "{000..009}.tar"),
        ("stdlib", "stdlib"),
        ("https://host/x.txt", "https://host/x.txt"),
    ],
)
def test_no_path_is_told(path, told, recipe):
    """Of data and recipes anywhere only the name is left, in the settings and in the command."""
    config = changed(load_recipe(str(recipe)), data={"path": path, "valid": path})
    config = dataclasses.replace(config, recipe=str(recipe.resolve()))
    settings = public_settings(config)
    assert (settings["data"]["path"], settings["recipe"]) == (told, "tiny.toml")
    words = shlex.split(command(config))
    assert words[:3] == ["foveal", "train", "tiny.toml"]
    assert words[words.index("--data.path") + 1] == told
    assert not any("me/" in word or "Users" in word for word in words)
