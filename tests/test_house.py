"""How the house is built: every room has its place, and no module needs one that needs it."""

from __future__ import annotations

import ast
import itertools
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import torch

import foveal

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(SOURCE.rglob("*.py"))
}


def named(name: str) -> str | None:
    """The module that an imported name stands for, or that holds it."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


def imports(name: str) -> set[str]:
    """Modules that one imports, anywhere in it: for types alone, or inside a function, too."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {named(one.name) for one in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{name} imports by a relative name"
            found |= {named(f"{node.module}.{one.name}") for one in node.names}
    return {one for one in found if one and one != name}


def circles(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    """What is left when modules that need nothing of what is left are taken away, and again."""
    left = {name: set(needs) for name, needs in graph.items()}
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    needed = {one for needs in left.values() for one in needs}
    yield from ([name, *sorted(left[name] & left.keys())] for name in left if name in needed)


def test_no_module_needs_itself():
    """Also by way of others, inside a room or across rooms, there is no circle of imports."""
    assert list(circles({"a": {"b"}, "b": {"a"}, "c": {"a"}})) == [["a", "b"], ["b", "a"]]
    # the package itself names what its rooms export
    graph = {name: imports(name) - {"foveal"} for name in MODULES}
    assert list(circles(graph)) == []


def test_every_room_has_its_place():
    """The contract of imports names each folder of the package."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contract = config["tool"]["importlinter"]["contracts"][0]
    rooms = [room.strip() for layer in contract["layers"] for room in layer.split("|")]
    folders = [f"foveal.{one.parent.name}" for one in (SOURCE / "foveal").glob("*/__init__.py")]
    assert sorted(rooms) == sorted(folders)


BY_TEXT = {
    "foveal": "rooms load when they are first named",
    "foveal.common.lazy": "whoever asks names the module",
    "foveal.training": "Accelerate loads when the trainer is first named",
    "foveal.cli": "a command loads when it is called",
    "foveal.compat": "each package loads when it is first named",
    "foveal.common.packages": "an optional package, by the name that an error would give",
    "foveal.bench.case": "modules of cases are named by who runs them",
    "foveal.data.text_files": "any one of several packages will do",
    "foveal.data.transform": "a function of the user's own, which settings name",
    "foveal.patterns.notebook": "a notebook may draw a pattern, and drawing lies above",
}
"""Modules that import others by a text, which hides them from the contract, and why."""


def test_the_guide_has_the_order_of_the_contract():
    """Contributors read the rooms in the order that the tool holds them to, the lowest first."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = config["tool"]["importlinter"]["contracts"][0]["layers"]
    order = [sorted(re.findall(r"foveal\.(\w+)", layer)) for layer in reversed(layers)]
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    said = re.search(r"rooms import only downward:\n\n((?:    .*\n)+)", guide)
    assert said
    assert [sorted(re.findall(r"\w+", layer)) for layer in said[1].split("<")] == order


def test_modules_named_by_text_are_known():
    """import_module hides no circle: those that use it are listed with their reason."""
    users = {name for name, path in MODULES.items() if "import_module(" in path.read_text()}
    assert users == set(BY_TEXT)


def test_no_file_is_long():
    """One idea a file."""
    long = [name for name, path in MODULES.items() if len(path.read_text().splitlines()) > 450]
    assert long == []


def test_a_query_passes_few_files():
    """From attend to the tiled arithmetic it goes through what CONTRIBUTING tells, and no more."""
    query = torch.randn(1, 2, 701, 16)
    files, home = set(), Path(foveal.__file__).parents[1]

    def sees(value):
        return isinstance(value, torch.Tensor) and value.numel() >= query.numel()

    def note(frame, event, _):
        path = Path(frame.f_code.co_filename)
        if event == "call" and home in path.parents and any(map(sees, frame.f_locals.values())):
            files.add(path.relative_to(home).as_posix())

    sys.setprofile(note)
    try:
        foveal.attend(query, query, query, foveal.patterns.SlidingWindow(33), impl="tiled")
    finally:
        sys.setprofile(None)
    assert {"foveal/ops/attend.py", "foveal/ops/tiled.py"} <= files
    assert len(files) <= 12, sorted(files)


def test_files_of_tests_have_names_of_their_own():
    """In whatever folders: pytest imports them by these names, and stops where two are alike."""
    names = sorted(path.name for path in Path(__file__).parent.rglob("test_*.py"))
    assert [one for one, other in itertools.pairwise(names) if one == other] == []
