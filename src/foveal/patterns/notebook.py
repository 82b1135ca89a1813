"""What a notebook shows of a pattern."""

from __future__ import annotations

import importlib
from typing import Any

_MOST_SHOWN = 4096  # positions that are drawn without being asked for


def picture(pattern: Any) -> bytes | None:
    """A PNG, or None where the pattern is too large or cannot be drawn."""
    try:
        # drawing lies above patterns and needs matplotlib, so it is looked for when asked
        drawing = importlib.import_module("foveal.draw.patterns")
        if drawing.natural_length(pattern) > _MOST_SHOWN:
            return None
        found: bytes = drawing.draw_pattern(pattern)
        return found
    except (ModuleNotFoundError, NotImplementedError, ValueError):
        return None
