"""Colours of the pictures; blue against orange is told apart by colour-blind readers too."""

from __future__ import annotations

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
