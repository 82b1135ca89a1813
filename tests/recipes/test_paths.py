"""Paths in the settings of a run: absolute, so that it can be used from any folder."""

import glob
import os

from foveal.recipes.config import absolute_path, absolute_paths, load_recipe
from foveal.recipes.run import evaluate, train
from foveal.recipes.runs import load_config


def test_a_run_is_used_from_any_folder(recipe, tmp_path, monkeypatch):
    """Data named by a relative path are found again from elsewhere, on a resume too."""
    monkeypatch.setattr("foveal.recipes.run.write_run_report", lambda folder: None)
    monkeypatch.setattr("foveal.recipes.run.finish", lambda *details: None)
    monkeypatch.chdir(tmp_path)
    recipe.write_text(recipe.read_text().replace(str(tmp_path) + "/", ""))
    folder, _ = train(load_recipe("tiny.toml"), "run")
    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    moved = recipe.rename(tmp_path / "else" / "tiny.toml")
    assert evaluate(tmp_path / folder)["bytes"] > 0
    config = load_config(tmp_path / folder)
    assert config.data.path == str(tmp_path / "text.txt")
    assert config.recipe == str(tmp_path / "tiny.toml")
    assert moved.exists()
    train(config, str(tmp_path / "run"), resume=True)


def test_only_paths_become_absolute(tmp_path, monkeypatch):
    """Embedded data, names of other places and what does not exist keep their names."""
    (tmp_path / "a [b]").mkdir()
    monkeypatch.chdir(tmp_path / "a [b]")
    (tmp_path / "a [b]" / "x.txt").write_text("x")
    (tmp_path / "a [b]" / "stdlib").mkdir()
    here = os.getcwd()
    for name in (
        "stdlib",
        "emoji",
        "listops",
        "hf:imdb",
        "hf-stream:c4",
        "missing",
        "",
        "x" * 9999,
    ):
        assert absolute_path(name) == name
    assert absolute_path("x.txt") == f"{here}/x.txt"
    assert absolute_path("../a [b]/x.txt") == f"{here}/x.txt"
    assert absolute_path("hf:imagefolder:.") == f"hf:imagefolder:{here}"
    assert absolute_path("/etc/x*") == "/etc/x*"
    assert glob.glob(absolute_path("*.txt")) == [f"{here}/x.txt"]
    assert absolute_path("s-{00..09}.tar").endswith("s-{00..09}.tar")
    config = load_recipe("captions-dalle")
    assert absolute_paths(config) == config
