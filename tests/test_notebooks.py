"""The notebooks of docs/notebooks run in a real kernel, and show what is kept in them."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import re
import sys
import tempfile
import threading
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
THUMBNAIL = (24, 24)
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ipykernel") is None, reason="ipykernel is not installed"
)


def script(name):
    """A module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "win32", reason="needs fork")
def test_the_notebooks_run_and_show_what_they_keep(after_dynamo):
    """From the top, in the kernel that a notebook server starts, without error or warning.

    What a cell prints is what it printed when it was kept, to the letter; its pictures look the
    same. Cells that are marked as varying, by machine or version, show the same kinds of things.
    """
    import nbformat

    runner = script("run_notebooks")
    problems = []
    with tempfile.TemporaryDirectory() as folder:
        path = runner.connection(Path(folder))
        code = (
            f"import os, signal; os.chdir({folder!r})\n"
            "signal.alarm(300)\n"  # it ends, whatever becomes of who asks it
            "from ipykernel.kernelapp import launch_new_instance\n"
            f"launch_new_instance(argv=['-f', {path!r}])\n"
        )
        environment = os.environ | {"IPYTHONDIR": folder}
        # a kernel that begins with torch imported, which is what takes long
        kernel = threading.Thread(target=after_dynamo, args=(code, environment))
        kernel.start()
        try:
            with runner.connected(path) as client:
                for name in NOTEBOOKS:
                    notebook = nbformat.read(name, as_version=4)
                    found = runner.run(notebook, client)
                    cells = runner.code_cells(notebook)
                    for cell, outputs in zip(cells, found, strict=True):
                        apart = differences(cell.outputs, outputs, is_varying(cell))
                        problems += [f"{name.name} {cell.id}: {one}" for one in apart]
        finally:
            kernel.join(60)
        assert {one.name for one in Path(folder).iterdir()} <= {
            "kernel.json", "profile_default", "nbextensions", "extensions", "README",
            *(f"kernel-{number}" for number in range(1, 6)),
        }  # fmt: skip
    assert problems == [], "if that is meant: make notebooks"


def is_varying(cell):
    return "varies" in cell.metadata.get("tags", ())


def differences(kept, found, varies):
    """What two lists of outputs of a cell do not have in common, in words."""
    warned = [one["text"] for one in found if one.get("name") == "stderr"]
    if warned:
        yield f"warns: {warned}"
    if list(map(kind, kept)) != list(map(kind, found)):
        yield f"shows {list(map(kind, found))}, kept are {list(map(kind, kept))}"
        return
    for old, new in zip(kept, found, strict=True):
        for form in () if varies else forms(new):
            a, b = forms(old)[form], forms(new)[form]
            if form == "image/png":
                if not look_alike(a, b):
                    yield "shows another picture"
            elif a != b:
                yield f"shows {b!r}, kept is {a!r}"


def kind(output):
    """The kind of an output, and the forms that it has."""
    return output["output_type"], output.get("name"), sorted(output.get("data", {}))


def forms(output):
    """The forms of an output; norms as they told themselves before torch 2.13."""
    found = dict(output.get("data", {})) | ({"text": output["text"]} if "text" in output else {})
    if "text/plain" in found:
        found["text/plain"] = found["text/plain"].replace("affine=True, bias=True", "affine=True")
    return found


def look_alike(one, other):
    """Whether two PNGs in base 64 differ by no more than letters and colours set otherwise."""
    from PIL import Image, ImageChops, ImageStat

    pictures = [Image.open(io.BytesIO(base64.b64decode(p))).convert("RGB") for p in (one, other)]
    small = [picture.resize(THUMBNAIL, Image.Resampling.BOX) for picture in pictures]
    return max(ImageStat.Stat(ImageChops.difference(*small)).mean) < 4


def test_what_counts_as_a_difference():
    """Other text, another picture, other kinds, a warning; nothing else."""
    from PIL import Image, ImageDraw

    def picture(box):
        image, file = Image.new("RGB", (300, 200), "white"), io.BytesIO()
        ImageDraw.Draw(image).rectangle(box, fill="blue")
        image.save(file, format="png")
        data = {"text/plain": "x", "image/png": base64.b64encode(file.getvalue()).decode()}
        return {"output_type": "execute_result", "data": data}

    def text(words, name="stdout"):
        return {"output_type": "stream", "name": name, "text": words}

    def count(kept, found, varies=False):
        return len(list(differences(kept, found, varies)))

    here, near, far = (
        picture((20, 20, 90, 90)),
        picture((21, 20, 90, 89)),
        picture((150, 90, 280, 180)),
    )
    assert count([text("a"), here], [text("a"), near]) == 0
    assert count([here], [far]) == 1
    assert count([here], [far], varies=True) == 0
    assert count([text("1 s")], [text("2 s")]) == 1
    assert count([text("1 s")], [text("2 s")], varies=True) == 0
    assert count([text("1 s")], [here], varies=True) == 1
    assert count([text("a")], [text("a"), text("b")], varies=True) == 1
    assert count([], [text("UserWarning", "stderr")], varies=True) == 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_a_good_file(path):
    """It is valid, was run from the top, is small, and keeps nothing of whose machine it was."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor >= 5) == (4, True)
    assert notebook.metadata == script("run_notebooks").METADATA
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell.metadata in ({}, {"tags": ["varies"]}) for cell in cells)
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any(not is_varying(cell) and cell.outputs for cell in cells)
    assert path.stat().st_size < 300_000
    text = path.read_text("utf-8")
    assert not re.search(r"/(home|root|tmp|work|Users)/", text)
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert re.match("https?:", target) or (path.parent / target).exists(), target


def test_a_page_of_the_site():
    """A notebook becomes Markdown: prose as it is, code, and the richest form of what it shows."""
    page_of = script("notebook_pages").page_of
    png = base64.b64encode(b"\x89PNG 1").decode()
    shown = {"text/plain": ["Blocks(\n", "[1])"], "image/png": png + "\n"}
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "words"]},
        {"cell_type": "code", "source": ["f()\n", "g()"], "outputs": [
            {"output_type": "stream", "name": "stdout", "text": ["a\n", "b\n"]},
            {"output_type": "execute_result", "data": shown},
            {"output_type": "execute_result", "data": {"text/html": "<table></table>",
                                                       "text/plain": "x"}},
            {"output_type": "execute_result", "data": {"text/plain": "12"}},
        ]},
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.ipynb"
        path.write_text(json.dumps({"cells": cells}), encoding="utf-8")
        page, pictures = page_of(path)
    assert pictures == {"one-1-1.png": b"\x89PNG 1"}
    assert page.startswith("# Title\nwords\n\n[Download this notebook](one.ipynb)")
    assert "````py\nf()\ng()\n````\n\n````text\na\nb\n````\n\n![Blocks( 1 )](one-1-1.png)" in page
    assert '<div class="shown"><table></table></div>\n\n````text\n12\n````\n' in page


def test_the_site_lists_every_notebook():
    """Each is in the navigation, and named by the page of examples."""
    settings = (DOCS.parent / "mkdocs.yml").read_text("utf-8")
    examples = (DOCS / "examples.md").read_text("utf-8")
    assert len(NOTEBOOKS) == 3
    for path in NOTEBOOKS:
        assert f"notebooks/{path.stem}.md" in settings
        assert f"(notebooks/{path.name})" in examples
