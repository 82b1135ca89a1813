"""Text files as people write them: their encodings, their lines, packed or not."""

from __future__ import annotations

import bz2
import codecs
import gzip
import importlib
import lzma
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from foveal.common.inputs import require_file
from foveal.data.walk import printable

PACKED = (".gz", ".bz2", ".xz", ".lzma", ".zst")
"""Suffixes of packed single files."""

MOST_UNPACKED = 4 << 30
"""Bytes that one packed file may hold; what claims more has to be unpacked by hand."""

_CHUNK = 1 << 20
_ZSTD_CHUNK = 4096  # a few bytes may unpack to a hundred thousand
_MARKS = (  # UTF-32 first: its mark begins as that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LINE_END = re.compile(r"\r\n|\n|\r")


def lines(text: str) -> list[str]:
    r"""The lines of a text, which end at \n, \r\n or \r and nowhere else.

    `str.splitlines` also breaks at U+2028, U+0085, form feeds and others, which are text.
    """
    found = _LINE_END.split(text)
    return found[:-1] if found[-1] == "" else found


def is_whole(text: str) -> bool:
    """Whether all letters of a text are whole; JSON can hold half of one."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def read_text(path: Path) -> str:
    """The whole of a text file, unpacked and decoded.

    Raises:
        ValueError: it cannot be read, or is no text in UTF-8, nor in UTF-16 or UTF-32 with a mark.
    """
    return decode_text(read_bytes(path), printable(path))


def decode_text(raw: bytes, name: str) -> str:
    """Bytes as text: UTF-8, or what the byte order mark says.

    Raises:
        ValueError: bytes that are no such text; names the line and the column of the first.
    """
    mark, encoding = mark_of(raw)
    try:
        text = raw[mark:].decode(encoding)
    except UnicodeDecodeError as error:
        before = raw[mark : mark + error.start].decode(encoding, "replace")
        line, column = _place(before)
        raise ValueError(
            f"{name} is not {encoding.upper()} at line {line}, column {column}; convert it first, "
            "as with iconv -f latin1 -t utf-8."
        ) from None
    if (zero := text.find("\0")) >= 0:
        line, column = _place(text[:zero])
        raise ValueError(
            f"{name} has a NUL character at line {line}, column {column}: it is no text, or "
            "UTF-16 without a byte order mark; convert it to UTF-8."
        )
    return text


def mark_of(raw: bytes) -> tuple[int, str]:
    """Length of the byte order mark, and the encoding it stands for; (0, "utf-8") without one."""
    for mark, encoding in _MARKS:
        if raw.startswith(mark):
            return len(mark), encoding
    return 0, "utf-8"


def is_packed(path: Path) -> bool:
    """Whether a file is packed, as its suffix says; archives of many files are not meant."""
    inner = Path(path.stem).suffix.lower()
    return path.suffix.lower() in PACKED and inner != ".tar"


def unpacked_name(path: Path) -> Path:
    """The path without the suffix of a packer."""
    return path.with_suffix("") if is_packed(path) else path


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """The bytes of a regular file, unpacked if its suffix says that it is packed.

    Args:
        limit: refuse files that hold more; `MOST_UNPACKED` unless given.

    Raises:
        ValueError: no such file, no file at all, damaged, too large, or no unpacker.
    """
    limit = MOST_UNPACKED if limit is None else limit
    require_file(path, "the text")
    name, open_ = printable(path), opener(path)
    try:
        with open_(path) as stream:
            raw = _read(stream, limit)
    except Exception as error:  # each unpacker has errors of its own, and some are OSErrors
        if isinstance(error, OSError) and error.errno is not None:
            raise ValueError(f"{name} cannot be read: {error.strerror}.") from None
        if not is_packed(path):
            raise
        raise ValueError(f"{name} is damaged or not what its suffix says: {error}.") from None
    if raw is None:
        raise ValueError(
            f"{name} holds more than {limit:,} bytes when read; unpack it by hand, or split it."
        )
    return raw


def opener(path: Path) -> Callable[[Path], Any]:
    """What opens a file for reading bytes; ValueError where the unpacker is not installed."""
    if not is_packed(path):
        return lambda path: path.open("rb")
    suffix = path.suffix.lower()
    if suffix == ".zst":
        return _zstd_opener(path)
    known: dict[str, Any] = {".gz": gzip, ".bz2": bz2, ".xz": lzma, ".lzma": lzma}
    return lambda path: known[suffix].open(path, "rb")


def _zstd_opener(path: Path) -> Callable[[Path], Any]:
    """Whichever of the packages that read Zstandard is there."""
    for module in ("compression.zstd", "backports.zstd", "zstandard", "pyzstd"):
        try:
            found = importlib.import_module(module)  # one of several, none of them required
        except ImportError:
            continue
        if module == "zstandard":
            return lambda path: _ZstandardReader(path, found.ZstdDecompressor)
        return lambda path: found.open(path, "rb")
    name = printable(path)
    raise ValueError(
        f"{name} needs a package to unpack .zst: pip install zstandard; or unpack it first: "
        f"zstd -d {path.name}"
    )


class _ZstandardReader:
    """A .zst by the package zstandard, whose own reader takes a cut file for a whole one.

    Args:
        path: the file.
        make: makes a decompressor.
    """

    def __init__(self, path: Path, make: Callable[[], Any]) -> None:
        self._file, self._make = path.open("rb"), make
        self._frame = make().decompressobj()
        self._inside = False

    def __enter__(self) -> _ZstandardReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, size: int) -> bytes:
        """The next bytes, about as many as come from a few of the file; b"" at its end."""
        while raw := self._file.read(_ZSTD_CHUNK):
            out = []
            while raw:
                out.append(self._frame.decompress(raw))
                raw, self._inside = self._frame.unused_data, not self._frame.eof
                if self._frame.eof:
                    self._frame = self._make().decompressobj()
            if piece := b"".join(out):
                return piece
        if self._inside:
            raise EOFError("it ends within a frame")
        return b""


def _read(stream: BinaryIO, limit: int) -> bytes | None:
    """All bytes of a stream, or None where they are more than `limit`."""
    parts, length = [], 0
    while piece := stream.read(_CHUNK):
        parts.append(piece)
        length += len(piece)
        if length > limit:
            return None
    return b"".join(parts)


def _place(before: str) -> tuple[int, int]:
    """Line and column of what comes after `before`, both counted from 1."""
    above = lines(before + "x")
    return len(above), len(above[-1])
