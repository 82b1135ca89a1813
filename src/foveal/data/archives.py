"""Files in archives of whatever system wrote them, read into memory and never onto the disk."""

from __future__ import annotations

import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from glob import glob
from pathlib import Path

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
    seen: set[str] = set()
    found = _zip_members(path) if path.suffix.lower() == ".zip" else _tar_members(path, left)
    try:
        for raw, read in found:
            name = "/".join(part for part in re.split(r"[/\\]", raw) if part not in ("", "."))
            if any(is_hidden(part) for part in name.split("/") if part != ".."):
                continue
            if name in seen:
                left.add("member that is there twice", printable(name))
                continue
            seen.add(name)
            yield name, _guarded(read, f"{printable(name)} of {printable(path)}", left)
    except _DAMAGES as error:
        left.problems.append(f"{printable(path)} is damaged or no archive: {_reason(error)}.")


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
    names = [str(data_path(pattern))]
    while found := re.search(r"\{(\d+)\.\.(\d+)\}", names[0]):
        first, last = found.groups()
        if len(names) * (int(last) - int(first) + 1) > _MOST_SHARDS:
            raise ValueError(f"data.path={pattern!r} names more than {_MOST_SHARDS:,} archives.")
        numbers = [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
        names = [name.replace(found[0], number, 1) for name in names for number in numbers]
        if not names:
            raise ValueError(f"data.path={pattern!r} has an empty range {found[0]}.")
    paths = [Path(path) for name in names for path in sorted(glob(name)) or [name]]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise ValueError(
            f"the archive {printable(missing[0])} of data.path={pattern!r} does not exist."
        )
    return paths


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
