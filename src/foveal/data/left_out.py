"""What a reader did not use: counted by kind while it reads, and told once."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

_SHOWN = 3


class LeftOut:
    """Counts of what was left out, and of what was wrong with single files.

    Attributes:
        problems: a sentence for each example that could not be used.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def add(self, kind: str, name: str | Path, count: int = 1) -> None:
        """Count `count` things of a kind ("*.zip", "unreadable folder"); the first is named."""
        self._counts[kind] += count
        self._first.setdefault(kind, printable(name))

    def add_file(self, path: Path) -> None:
        """Count a file by its suffix."""
        kind = f"*{path.suffix.lower()}" if path.suffix else "without a suffix"
        self.add(kind, path.name)

    def __bool__(self) -> bool:
        return bool(self._counts or self.problems)

    def kinds(self) -> str:
        """What was left out, by kind: "3 *.zip (a.zip ...), 1 broken link (x)"; "" for nothing."""
        parts = []
        for kind, count in sorted(self._counts.items(), key=lambda item: (-item[1], item[0])):
            more = " ..." if count > 1 else ""
            parts.append(f"{count:,} {kind} ({self._first[kind]}{more})")
        shown = ", ".join(parts[:8])
        return shown + (f" and {len(parts) - 8} more kinds" if len(parts) > 8 else "")

    def warn(self, name: str, what: str = "example") -> None:
        """One warning about damaged examples, and one about kinds of files, where there are any.

        Args:
            name: the data.
            what: a word for one example.
        """
        if self.problems:
            warnings.warn(skipped_sentence(self.problems, name, what), stacklevel=3)
        if self._counts:
            warnings.warn(f"left out of {printable(name)}: {self.kinds()}.", stacklevel=3)


def skipped_sentence(problems: list[str], name: str, what: str) -> str:
    """How many examples were left out, and what was wrong with the first few."""
    shown = " ".join(problems[:_SHOWN])
    more = f" ... and {len(problems) - _SHOWN} more." if len(problems) > _SHOWN else ""
    number = f"1 {what}" if len(problems) == 1 else f"{len(problems)} {what}s"
    return f"skipped {number} of {printable(name)}: {shown}{more}"


def printable(name: object) -> str:
    """A name as a terminal can show it: on one line, bytes that are not UTF-8 escaped."""
    text = str(name).encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
