"""A notebook as a page of the site: Markdown, and its pictures as files beside it."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

FENCE = "`" * 4


def page_of(path: Path) -> tuple[str, dict[str, bytes]]:
    """The Markdown of a notebook as it was run last, and its pictures by name.

    Pictures lie in a folder that is called as the notebook.
    """
    cells = json.loads(path.read_text("utf-8"))["cells"]
    parts, pictures = [], {}
    for number, cell in enumerate(cells):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"{FENCE}py\n{source}\n{FENCE}")
        for place, output in enumerate(cell["outputs"]):
            name = f"{path.stem}-{number}-{place}.png"
            text, picture = _output(output, name)
            parts.append(text)
            pictures |= {name: picture} if picture else {}
    download = f"[Download this notebook]({path.name}){{ download }}"
    return "\n\n".join([*parts[:1], download, *parts[1:], ""]), pictures


def _output(output: dict[str, Any], name: str) -> tuple[str, bytes | None]:
    """What a cell showed: the richest of its forms, as a notebook chooses."""
    data = {form: "".join(text) for form, text in output.get("data", {}).items()}
    if "text/html" in data:
        return f'<div class="shown">{data["text/html"]}</div>', None
    if "image/png" in data:
        words = re.sub(r"[\[\]\s]+", " ", data["text/plain"]).strip()
        return f"![{words}]({name})", base64.b64decode(data["image/png"])
    text = data.get("text/plain", "".join(output.get("text", "")))
    return f"{FENCE}text\n{text.rstrip()}\n{FENCE}", None
