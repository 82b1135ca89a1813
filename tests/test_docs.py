"""The documents are true: snippets run, links resolve, commands and folders exist."""

import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "foveal"
DOCUMENTS = [
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
    if not path.name.startswith(".")
]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, *languages: str) -> list[tuple[int, str]]:
    """(line, content) of each fenced block in one of the languages."""
    text = path.read_text("utf-8")
    return [
        (text[: match.start()].count("\n") + 2, match[2])
        for match in FENCE.finditer(text)
        if match[1] in languages
    ]


@pytest.mark.parametrize("path", [path for path in DOCUMENTS if blocks(path, "python")], ids=name)
def test_python_snippets_run(path, tmp_path, monkeypatch):
    """The snippets of a document run one after another, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    scope: dict[str, object] = {"__name__": "snippet"}
    for line, code in blocks(path, "python"):
        # empty lines in front keep the document's line numbers in a traceback
        exec(compile("\n" * (line - 1) + code, str(path), "exec"), scope)


@pytest.mark.parametrize("path", DOCUMENTS, ids=name)
def test_links_resolve(path):
    """Relative links point at files of the repository."""
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text("utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target).exists(), f"{name(path)} links to {target}"


def test_commands_exist():
    """Each `foveal` and `make` command of the documents is one that there is."""
    from foveal.cli import COMMANDS

    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for path in DOCUMENTS:
        for _, code in blocks(path, "sh", "console"):
            for command in re.findall(r"^\s*foveal (\w+)", code, re.MULTILINE):
                assert command in COMMANDS, f"{name(path)}: foveal {command}"
            for target in re.findall(r"^\s*make (\w+)", code, re.MULTILINE):
                assert target in targets, f"{name(path)}: make {target}"


def test_the_file_tree_of_the_readme_is_the_package():
    """Each room is listed, and each listed room exists."""
    tree = re.search(r"^src/foveal/\n(.*?)^tests/", (ROOT / "README.md").read_text(), re.M | re.S)
    assert tree is not None
    listed = set(re.findall(r"^  (\w+)/", tree[1], re.MULTILINE))
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert listed == rooms


def test_the_readme_names_every_pattern():
    """The table of patterns is complete."""
    from foveal.patterns.serialize import known_patterns

    text = (ROOT / "README.md").read_text("utf-8")
    ours = (n for n, cls in known_patterns().items() if cls.__module__.startswith("foveal."))
    assert [pattern for pattern in ours if f"`{pattern}`" not in text] == []
