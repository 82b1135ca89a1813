"""The page: its parts, which lie beside this file, and the tables, put into one file of HTML."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from typing import Any

from foveal.explore.families import FAMILIES, Family
from foveal.explore.tables import HEAD_DIM, RANKS, table
from foveal.version import __version__

STYLES = ("page.css",)
SCRIPTS = ("tables.js", "state.js", "paint.js", "page.js")
MOST_BYTES = 1_000_000


def page(
    more: Sequence[Family] = (),
    watched: Callable[[Sequence[Family]], Iterable[Family]] = iter,
) -> str:
    """The whole page, which needs no other file and no network.

    Args:
        more: families that are shown before those that it always has; the first is chosen.
        watched: gives the families one after another, and may tell how many are done.
    """
    style, script = _read(*STYLES), _read(*SCRIPTS)
    script = f'"use strict";\n{{\n{script}}}\n'
    parts = {
        "POLICY": _policy(style, script),
        "STYLE": style,
        "TABLES": packed(tables(watched([*more, *FAMILIES]))),
        "SCRIPT": script,
        "VERSION": __version__,
    }
    # in one pass, so that nothing that is put in is taken for a place
    pieces = _read("page.html").split("@@")
    return "".join(parts[one] if at % 2 else one for at, one in enumerate(pieces))


def tables(families: Iterable[Family]) -> dict[str, Any]:
    """All that the page knows of patterns."""
    return {
        "version": __version__,
        "headDim": HEAD_DIM,
        "ranks": list(RANKS),
        "families": [
            {
                "name": family.name,
                "about": family.about,
                "options": [[name, list(values)] for name, values in family.options.items()],
                "entries": [table(family, choice) for choice in family.choices()],
            }
            for family in families
        ],
    }


def packed(content: Any) -> str:
    """JSON, deflated, in base 64: letters, digits, + and / only."""
    text = json.dumps(content, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode(), 9)).decode()


def unpacked(text: str) -> Any:
    """What `packed` was given."""
    return json.loads(zlib.decompress(base64.b64decode(text)))


def _read(*names: str) -> str:
    folder = files("foveal.explore")
    return "".join(folder.joinpath(name).read_text(encoding="utf-8") for name in names)


def _policy(style: str, script: str) -> str:
    """What a browser may do for the page: run this script, use this style, and nothing else."""
    return (
        f"default-src 'none'; script-src '{_digest(script)}'; style-src '{_digest(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
