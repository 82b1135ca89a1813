"""Colours of the pictures; blue against orange is told apart by colour-blind readers too."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from foveal.common.files import write_file

INK = "#1d2733"
MUTED = "#8a97a6"
READ = "#1f6fb4"
QUERY = "#e07b00"
EMPTY = "#ffffff"
FUTURE = "#e9edf1"


def save_figure(figure: Any, path: Path) -> Path:
    """Write a figure of matplotlib in one step, in the format that its suffix names."""
    form = path.suffix.removeprefix(".") or "png"
    write_file(path, lambda partial: figure.savefig(partial, format=form))
    return path


def as_png(figure: Any, path: str | Path | None) -> bytes | Path:
    """A figure of matplotlib as a PNG: its bytes, or the path where it was written."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150, bbox_inches="tight")
    if path is None:
        return picture.getvalue()
    write_file(Path(path), lambda partial: partial.write_bytes(picture.getvalue()))
    return Path(path)
