"""The README tells it in two minutes: a picture, two commands and a table, all of them true."""

from __future__ import annotations

import dataclasses
import json
import re
import runpy
import tomllib
from pathlib import Path

import pytest
import readme
import run
import torch

from foveal.bench import Case, find
from foveal.bench.case import MODULES
from foveal.recipes.config import load_recipe, recipe_names

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text("utf-8")
FRONT = (ROOT / "docs" / "index.md").read_text("utf-8")
GALLERY = runpy.run_path(str(ROOT / "docs" / "draw_gallery.py"))


def first_screen() -> str:
    """All before the first heading within the text."""
    return TEXT.partition("\n## ")[0]


# -- the story ------------------------------------------------------------------------------------


def test_the_first_screen_has_all_of_it():
    """Picture, what, for whom, two commands, the table with its command, where not; in turn."""
    said = first_screen()
    parts = (
        *("patterns-light.svg", "Structured attention for PyTorch", "It is for", "pip install "),
        *(
            "foveal train",
            "| times as fast | as |",
            "`python benchmarks/readme.py`",
            "Where not to use it",
        ),
    )
    places = [said.find(part) for part in parts]
    assert -1 not in places
    assert places == sorted(places)
    assert len(said.splitlines()) <= 50
    assert len(re.findall(r"^(?:pip|foveal) ", said, re.MULTILINE)) == 2
    assert len(TEXT.splitlines()) <= 150


def test_the_front_page_shows_before_it_says():
    """The site begins with the same picture, shows the explorer and the table of the README."""
    shown = FRONT.index("assets/patterns-light.svg#only-light")
    assert shown < FRONT.index("assets/patterns-dark.svg#only-dark") < FRONT.index("Structured")
    assert FRONT.index('<iframe class="explorer"') < FRONT.index('--8<-- "README.md:table"')
    for block in re.findall(r"^```sh\n(.*?)^```", first_screen(), re.MULTILINE | re.DOTALL):
        assert block in FRONT


def test_what_is_said_of_the_first_recipe_is_true():
    """It is trained for three minutes, by the clock, and is the one that `make run` takes."""
    assert readme.RECIPE in recipe_names()
    assert load_recipe(readme.RECIPE).training.time_budget == 180
    assert f"\nfoveal train {readme.RECIPE}\n" in first_screen()
    assert "three minutes on any machine" in first_screen()
    assert f"foveal train {readme.RECIPE}\n" in (ROOT / "Makefile").read_text("utf-8")


def test_what_is_installed_is_enough_for_what_follows():
    """The extras of the command are those that a report, pictures and drawing ask for."""
    extras = re.search(r'^pip install "\.\[([\w,]+)\]"$', first_screen(), re.MULTILINE)
    assert extras is not None
    assert set(extras[1].split(",")) == {"train", "data", "draw"}
    assert f'`pip install "foveal[{extras[1]}]"`' in first_screen()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    known = project["optional-dependencies"]
    needed = {"matplotlib": "draw", "tyro": "train", "accelerate": "train", "pillow": "data"}
    for package, extra in needed.items():
        assert any(one.startswith(package) for one in known[extra])


# -- the figures ----------------------------------------------------------------------------------


def test_figures_are_those_that_were_measured():
    """What stands between the marks is what the script prints of the results that it kept."""
    for name, words in readme.WORDS.items():
        found = readme.kept(name)
        assert readme.marked(TEXT, name) == words(found)
        assert "python benchmarks/readme.py" in found["command"]
    assert "In its 3 minutes" in readme.marked(TEXT, "run")


def test_no_other_figure_is_there():
    """Outside of the marks and of code no number is one of time, size or score."""
    rest = TEXT
    for name in readme.WORDS:
        rest = readme.marked(rest, name, "")
    prose = re.sub(r"^```.*?^```|`[^`\n]*`|<picture>.*?</picture>", "", rest, flags=re.M | re.S)
    measured = r"\d[\d,.]*\s*(?:ms|s|us|x|bits?|bytes?|MB|GB|seconds|minutes|times|%)\b|\d\.\d"
    assert re.findall(measured, prose) == []
    for said in ("2.04 bits", "11.2 times", "took 3 s", "0.95"):
        assert re.search(measured, said)


def test_rows_are_registered_cases(monkeypatch):
    """Each row names a case of benchmarks/ and one of its runs; all five packages are there."""
    monkeypatch.setattr("foveal.bench.case.MODULES", [*MODULES])
    monkeypatch.setattr(run, "MODULES", __import__("foveal.bench.case").bench.case.MODULES)
    run.register()
    for row in readme.ROWS:
        (case,) = (one for one in find([row.case]) if one.name == row.case)
        assert row.run in case.runs
        assert row.ours == "attend" or row.ours in case.contenders
    packages = {row.beside for row in readme.ROWS}
    assert packages >= {name for name in _peers() if name not in ("timm", "natten")}


def _peers() -> tuple[str, ...]:
    from foveal.bench.machine import PEERS

    return PEERS


def test_a_row_is_measured_and_kept(tmp_path, monkeypatch, capsys):
    """--keep changes the README between the marks alone; a peer that is missing is left out."""

    def make(contender, run_name, device):
        if contender == "absent":
            raise ModuleNotFoundError(name="absent")
        return lambda: torch.zeros(1)

    cases = [
        Case(n, "x" * 30, ("foveal", n), make, runs=("training",)) for n in ("here", "absent")
    ]
    cases.append(dataclasses.replace(cases[0], name="long", seconds=60.0))
    monkeypatch.setattr(readme, "find", lambda names: [c for c in cases if c.name in names])
    rows = tuple(readme.Row(f"row {c.name}", c.name, "training", "foveal", c.name) for c in cases)
    monkeypatch.setattr(readme, "ROWS", rows)
    monkeypatch.setattr(readme, "register", lambda: None)
    monkeypatch.setattr(readme, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(readme, "README", tmp_path / "README.md")
    (tmp_path / "README.md").write_text(TEXT, "utf-8")
    found = readme.measure_all(3)
    readme.keep("table", found)
    text = (tmp_path / "README.md").read_text("utf-8")
    assert readme.marked(text, "table") == readme.comparison(found)
    assert readme.marked(text, "table", "") == readme.marked(TEXT, "table", "")
    assert [len(row["rounds"]["foveal"]) for row in found["rows"]] == [3, 3, 2]
    assert "| row here |" in text
    assert "| row absent |" not in text
    assert json.loads((tmp_path / "results" / "table.json").read_text("utf-8")) == found
    assert "absent is not installed" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no marks for the run"):
        readme.marked("", "run")


def test_the_first_run_is_told_and_kept(tmp_path, monkeypatch):
    """What its three commands print is taken down, and said between marks of its own."""

    def command(*words):
        (tmp_path / "run").mkdir(exist_ok=True)
        (tmp_path / "run" / "result.json").write_text('{"steps": 1234, "seconds": 51}', "utf-8")
        config = {"training": {"time_budget": budget}}
        (tmp_path / "run" / "config.json").write_text(json.dumps(config), "utf-8")
        score = {"bits_per_byte": 2.125, "gzip": 1.977, "xz": 1.73, "bytes": 98765, "left": "out"}
        return json.dumps(score | {"tokens": 400, "seconds": 0.5})

    budget = None
    monkeypatch.setattr(readme, "command", command)
    assert "In its 0.85 minutes" in readme.reached(readme.first_run(tmp_path, ["--steps", "1234"]))
    budget = 90
    monkeypatch.setattr(readme, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(readme, "README", tmp_path / "README.md")
    (tmp_path / "README.md").write_text(TEXT, "utf-8")
    found = readme.first_run(tmp_path, [])
    readme.keep("run", found)
    said = readme.marked((tmp_path / "README.md").read_text("utf-8"), "run")
    for part in (
        "In its 1.5 minutes it took 1,234 steps",
        "2.12 bits",
        "needs 1.98",
        "800 bytes a second",
        torch.__version__,
    ):
        assert part in " ".join(said.split())
    assert readme.kept("run") == found


# -- the picture ----------------------------------------------------------------------------------


def test_the_picture_is_drawn_by_what_is_here():
    """Both files are what the script draws, small, and differ in their colours alone."""
    drawn = GALLERY["files"]()
    assert {path.name for path in drawn} == {"patterns-light.svg", "patterns-dark.svg"}
    for path, text in drawn.items():
        assert path.read_text("utf-8") == text, "run python docs/draw_gallery.py"
        assert len(text) < 30_000
        for name in (path.name, "prefers-color-scheme: dark"):
            assert name in TEXT
    plain = {re.sub(r"#[0-9a-f]{6}", "", text) for text in drawn.values()}
    assert len(plain) == 1


@pytest.mark.parametrize("number", range(6))
def test_each_panel_shows_the_mask(number):
    """The squares of the picture, read back, are the mask of the pattern: its rows, or one row."""
    name, (pattern, _) = list((GALLERY["SEQUENCES"] | GALLERY["IMAGES"]).items())[number]
    text = (ROOT / "docs" / "assets" / "patterns-light.svg").read_text("utf-8")
    assert f">{name}</text>" in text
    left = number % 3 * GALLERY["STEP"] + 1
    if number < 3:
        side, length = GALLERY["CELL"], GALLERY["TOKENS"]
        found = squares(text, left, GALLERY["MASKS"], side, length, length)
        assert torch.equal(found, pattern.mask(length))
        return
    (height, width), side = GALLERY["IMAGE"], GALLERY["PIXEL"]
    words = width if name == "TextImage" else 0
    found = squares(text, left, GALLERY["PIXELS"], side, height, width).flatten()
    if words:
        above = squares(text, left, GALLERY["PIXELS"] - 2 * side, side, 1, words).flatten()
        found = torch.cat([above, found])
    row, column = GALLERY["AT"]
    query = words + row * width + column
    assert torch.equal(found, pattern.mask(words + height * width)[query])


def squares(text: str, left: int, top: int, side: int, height: int, width: int) -> torch.Tensor:
    """(height, width) bool: which squares of a grid lie in a blue or orange path."""
    found = torch.zeros(height, width, dtype=torch.bool)
    for path in re.findall(r'class="(?:read|chosen)" [^/]*?d="([^"]+)"', text):
        for x, y, long in re.findall(r"M(\d+) (\d+)h(\d+)v", path):
            column, row = (int(x) - left) // side, (int(y) - top) // side
            if 0 <= row < height and 0 <= column < width:
                found[row, column : column + int(long) // side] = True
    return found
