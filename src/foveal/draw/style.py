"""Colours of the pictures; blue against orange is told apart by colour-blind readers too."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

from foveal.common.files import write_file

INK = "#1d2733"
MUTED = "#8a97a6"
READ = "#1f6fb4"
QUERY = "#e07b00"
EMPTY = "#ffffff"
FUTURE = "#e9edf1"
_MOST_LETTERS = 32


class Picture(bytes):
    """The bytes of a PNG, which a notebook shows."""

    def _repr_png_(self) -> bytes:
        return bytes(self)

    def __repr__(self) -> str:
        return f"<PNG, {len(self):,} bytes>"


def shown(name: str) -> str:
    """A name that data brought as matplotlib writes it: on one line, short, and no formula."""
    name = "".join(letter if letter.isprintable() else "\ufffd" for letter in name)
    name = name if len(name) <= _MOST_LETTERS else f"{name[: _MOST_LETTERS - 1]}\u2026"
    return name.replace("$", r"\$")


def save_figure(figure: Any, path: Path) -> Path:
    """Write a figure of matplotlib in one step, in the format that its suffix names."""
    form = path.suffix.removeprefix(".") or "png"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # it draws a box, which says enough
        write_file(path, lambda partial: figure.savefig(partial, format=form))
    return path


def as_png(figure: Any, path: str | Path | None) -> Picture | Path:
    """A figure of matplotlib as a PNG: its bytes, or the path where it was written."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150, bbox_inches="tight")
    return _kept(picture, path)


def image_as_png(image: Any, path: str | Path | None) -> Picture | Path:
    """A `PIL.Image` as a PNG: its bytes, or the path where it was written."""
    picture = io.BytesIO()
    image.save(picture, format="PNG")
    return _kept(picture, path)


def _kept(picture: io.BytesIO, path: str | Path | None) -> Picture | Path:
    if path is None:
        return Picture(picture.getvalue())
    write_file(Path(path), lambda partial: partial.write_bytes(picture.getvalue()))
    return Path(path)
