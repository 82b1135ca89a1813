"""The word that somebody meant, texts on one line, sizes in words."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def meant(word: object, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known word nearest to `word`, whatever its case, or None where none is near."""
    words = {one.lower(): one for one in known}
    close = difflib.get_close_matches(str(word).lower(), words, n=1, cutoff=cutoff)
    return words[close[0]] if close else None


def suggest(word: object, known: Iterable[str], otherwise: str | None = None) -> str:
    """A hint for a misspelt word: "did you mean 'x'?", or `otherwise`, or what there is."""
    known = list(known)
    near = meant(word, known)
    if near is not None:
        return f"did you mean {near!r}?"
    return f"known: {', '.join(sorted(known))}." if otherwise is None else otherwise


def shorten(text: str, most: int = 300) -> str:
    """A text on one line of printable characters, without its middle where it is longer than so.

    A terminal cannot be moved by what a file name holds, and shows the beginning and the end.
    """
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    if len(line) <= most:
        return line
    tail = most // 3
    return f"{line[: most - tail - 5]} ... {line[-tail:]}"


def in_bytes(size: float) -> str:
    """Bytes with three digits: "512 B", "1.05 MB"."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"
