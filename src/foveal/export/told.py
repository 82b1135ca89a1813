"""What a program is, in words: of what `describe` says, for terminals and notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def in_words(least: int, most: int | None) -> str:
    """The values of a size: "1 or more", "2 to 4096", "224"."""
    if least == most:
        return f"{least}"
    return f"{least} or more" if most is None else f"{least} to {most}"


def input_in_words(one: Mapping[str, Any]) -> str:
    """An input: "int64 (batch 1 or more, length 2 to 4096), each below 256"."""
    spans = [(size, size) if isinstance(size, int) else size for size in one["shape"]]
    sizes = [f"{name} {in_words(*span)}" for name, span in zip(one["sizes"], spans, strict=True)]
    below = f", each below {one['tokens']:,}" if one.get("tokens") else ""
    return f"{one['dtype']} ({', '.join(sizes)}){below}"


def rows(about: Mapping[str, Any]) -> dict[str, str]:
    """Its inputs by name, and how near it was to the model."""
    found = {one["name"]: input_in_words(one) for one in about["inputs"]}
    deviation = about.get("deviation")
    if isinstance(deviation, int | float):
        found["differs"] = f"from the model by {deviation:.1e} at most, where compared"
    return found


def facts(about: Mapping[str, Any]) -> dict[str, str]:
    """`rows`, and what model it is of."""
    made = ", ".join(f"{name} {about[name]}" for name in ("foveal", "torch") if name in about)
    return {
        "model": str(about.get("family", "")),
        "dtype": str(about.get("dtype", "")),
        **rows(about),
        "weights": str(about.get("weights", "")),
        "made by": made,
    }
