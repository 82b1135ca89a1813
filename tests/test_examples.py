"""Each example runs, and prints what its docstring promises."""

import ast
import doctest
import runpy
from pathlib import Path
from textwrap import dedent

import pytest
import torch

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
MAX_LINES = 60


def promise(path: Path) -> str:
    """The lines behind "Prints:" of an example's docstring; `...` stands for anything."""
    text = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
    return dedent(text.partition("Prints:\n")[2]) + "\n"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_print_what_they_promise(path, tmp_path, monkeypatch, capsys):
    """From any folder, an example keeps its word, and no warning is given."""
    monkeypatch.chdir(tmp_path)
    expected = promise(path)
    assert expected.strip(), f"{path.name} promises nothing"
    with torch.random.fork_rng():
        runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.OutputChecker().check_output(expected, printed, flags), printed


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_small(path):
    """An example is one idea on one screen."""
    assert len(path.read_text("utf-8").splitlines()) <= MAX_LINES
