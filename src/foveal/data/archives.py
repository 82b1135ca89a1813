"""Files in archives of whatever system wrote them, read into memory and never onto the disk."""

from __future__ import annotations

import lzma
import posixpath
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from glob import glob
from pathlib import Path
from typing import Any, TypeVar

from foveal.common.inputs import require_file
from foveal.data.walk import LeftOut, data_path, is_hidden, printable

ARCHIVES = (".tar", ".tgz", ".tbz2", ".txz", ".zip")
"""Suffixes of archives; a .tar may be packed, as .tar.gz."""

_MOST_MEMBER = 1 << 30
_MOST_TOTAL, _MOST_RATIO = 4 << 30, 200
_MOST_SHARDS = 100_000

_DAMAGES = (
    *(tarfile.TarError, zipfile.BadZipFile, EOFError, lzma.LZMAError, zlib.error, OSError),
    *(NotImplementedError, RuntimeError),  # of zip members that are locked, or packed otherwise
)

T = TypeVar("T")
Member = tuple[str, Callable[[], bytes | None]]
"""The name of a file, with "/" between folders, and what reads it; None where it is damaged."""


def is_archive(path: str) -> bool:
    """Whether a path, or a pattern of paths, names archives."""
    suffixes = Path(path).suffixes
    return bool(suffixes) and (suffixes[-1].lower() in ARCHIVES or ".tar" in suffixes[-2:])


def members(path: Path, left: LeftOut) -> Iterator[Member]:
    """The files of an archive, in order; hidden and system ones passed over.

    Names of other systems are welcome: backslashes, absolute ones, bytes that are not UTF-8. No
    name leads anywhere, for nothing is written. A name that is there twice counts once.

    Raises:
        ValueError: no archive, a damaged one, or one that claims to hold absurdly much.
    """
    require_file(path, "the archive")
    found = _zip_members(path) if path.suffix.lower() == ".zip" else _tar_members(path, left)
    for name, read in _kept(found, printable(path), left):
        yield name, _guarded(read, f"{printable(name)} of {printable(path)}", left)


def tar_members(stream: Any, called: str, left: LeftOut) -> Iterator[tuple[str, int, int]]:
    """The files of a plain tar, as `members`: their names, places in it, and lengths.

    Args:
        stream: the tar, as an open file of bytes.
        called: what to call it.
    """
    links: list[tuple[str, str]] = []
    places: dict[str, tuple[int, int]] = {}

    def found() -> Iterator[tuple[str, tuple[int, int]]]:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                if member.size > _MOST_MEMBER:
                    left.add("member that is too large", printable(member.name))
                elif member.isreg() and not member.issparse():
                    places[member.name] = member.offset_data, member.size
                    yield member.name, places[member.name]
                elif member.islnk() or member.issym():
                    home = "" if member.islnk() else posixpath.dirname(member.name)
                    target = posixpath.join(home, member.linkname)
                    links.append((member.name, posixpath.normpath(target)))
                elif not member.isdir():
                    left.add("FIFO, device or other member", printable(member.name))
            stream.seek(archive.offset)
            last = stream.read(tarfile.BLOCKSIZE)
            if last.strip(b"\0"):  # tarfile takes it for the end
                raise tarfile.ReadError(f"what follows byte {archive.offset:,} is no header")
            if not last:
                raise tarfile.ReadError("it lacks the empty blocks at its end, as if cut off")
        for name, target in links:  # links lead to members only, and to none for a whole
            places.setdefault(name, places.get(target, (0, 0)))
            yield name, places[name]

    for name, place in _kept(found(), called, left):
        yield name, *place


def _kept(found: Iterator[tuple[str, T]], called: str, left: LeftOut) -> Iterator[tuple[str, T]]:
    """Members under the names that we know them by; damage ends them, and is told."""
    seen: set[str] = set()
    try:
        for raw, member in found:
            name = "/".join(part for part in re.split(r"[/\\]", raw) if part not in ("", "."))
            if any(is_hidden(part) for part in name.split("/") if part != ".."):
                continue
            if name in seen:
                left.add("member that is there twice", printable(name))
                continue
            seen.add(name)
            yield name, member
    except _DAMAGES as error:
        left.problems.append(f"{called} is damaged or no archive: {_reason(error)}.")


def _guarded(read: Callable[[], bytes], called: str, left: LeftOut) -> Callable[[], bytes | None]:
    """What reads a member, or tells what is wrong with it."""

    def guarded() -> bytes | None:
        try:
            return read()
        except _DAMAGES as error:
            left.problems.append(f"{called} is damaged or locked: {_reason(error)}.")
            return None

    return guarded


def _reason(error: Exception) -> str:
    reason = " ".join(str(error).split())
    # tarfile lists what every unpacker had to say
    return "no unpacker knows it" if "successfully" in reason else reason


def archive_paths(pattern: str) -> list[Path]:
    """`a-{000..009}.tar`, `*.tar` or a plain path; sorted.

    Raises:
        ValueError: there is none, or a range of absurdly many.
    """
    names = expand(str(data_path(pattern)))
    paths = [Path(path) for name in names for path in sorted(glob(name)) or [name]]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise ValueError(
            f"the archive {printable(missing[0])} of data.path={pattern!r} does not exist."
        )
    return paths


def expand(pattern: str) -> list[str]:
    """Every name that a pattern with ranges, as "{000..009}", stands for.

    Raises:
        ValueError: an empty range, or one of absurdly many.
    """
    names = [pattern]
    while found := re.search(r"\{(\d+)\.\.(\d+)\}", names[0]):
        first, last = found.groups()
        if len(names) * (int(last) - int(first) + 1) > _MOST_SHARDS:
            raise ValueError(f"data.path={pattern!r} names more than {_MOST_SHARDS:,} archives.")
        numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        names = [name.replace(found[0], number, 1) for name in names for number in numbers]
        if not names:
            raise ValueError(f"data.path={pattern!r} has an empty range {found[0]}.")
    return names


def _tar_members(path: Path, left: LeftOut) -> Iterator[tuple[str, Callable[[], bytes]]]:
    most = max(_MOST_TOTAL, _MOST_RATIO * path.stat().st_size)
    total = 0
    with tarfile.open(path, "r:*") as archive:
        for member in archive:
            total += member.size
            _check(path, member.name, member.size, total, most)
            if member.isdir():
                continue
            if not (member.isreg() or member.islnk() or member.issym()):
                left.add("FIFO, device or other member", printable(member.name))
                continue
            yield member.name, _tar_reader(archive, member)


def _tar_reader(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            stream = archive.extractfile(member)  # into memory; links lead to other members only
        except (KeyError, RecursionError):
            stream = None
        if stream is None:
            return b""
        raw = stream.read(_MOST_MEMBER + 1)
        if len(raw) > _MOST_MEMBER:
            raise tarfile.ReadError(f"{printable(member.name)} is too large")
        return raw

    return read


def _zip_members(path: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    most = max(_MOST_TOTAL, _MOST_RATIO * path.stat().st_size)
    total = 0
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            total += member.file_size
            _check(path, member.filename, member.file_size, total, most)
            if not member.is_dir():
                yield member.filename, lambda member=member: archive.read(member)  # type: ignore[misc]


def _check(path: Path, name: str, size: int, total: int, most: int) -> None:
    if size > _MOST_MEMBER or total > most:
        raise ValueError(
            f"{printable(path)} claims to hold {max(size, total):,} bytes at {printable(name)}, "
            "more than is ever read from such an archive; unpack it into a folder."
        )
