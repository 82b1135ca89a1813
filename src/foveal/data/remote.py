"""Files behind an address (memory://, s3://, https://, ...), read in ranges by way of fsspec."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from foveal.common.packages import how_to_get, need
from foveal.common.words import shorten
from foveal.data.blocks import BlockCache

BLOCKS = BlockCache()
"""What this process has read of such files lately."""

LOOK_AGAIN = 60.0
"""Seconds after which a file that is read is looked at again: it may have been changed."""

_ADDRESS = re.compile(r"^(?:[a-z][a-z0-9+.-]*::)*[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_VERSIONS = (
    *("ETag", "etag", "md5Hash", "content_md5", "version_id", "generation", "ino", "mtime"),
    *("LastModified", "last_modified", "modified", "created"),
)
_looked_at: dict[str, float] = {}


def is_remote(path: object) -> bool:
    """Whether a path is an address that fsspec knows the kind of: "s3://bucket/file"."""
    return isinstance(path, RemoteFile) or (
        isinstance(path, str) and _ADDRESS.match(path) is not None
    )


@dataclass(frozen=True)
class RemoteFile:
    """A file behind an address, of which ranges are read through `BLOCKS`.

    Attributes:
        url: the address.
        size: in bytes.
        version: what tells that it has been changed, as far as the store says.
    """

    url: str
    size: int
    version: str = field(default="", repr=False)

    def __str__(self) -> str:
        return re.sub(r"//[^/@]*@", "//", self.url)  # no password in a message

    @property
    def path(self) -> PurePosixPath:
        """The address as a path, for its name and its suffixes."""
        return PurePosixPath(self.url.partition("://")[2].partition("?")[0])

    def key(self) -> tuple[str, int, str]:
        """What the cache of blocks knows it by."""
        return self.url, self.size, self.version

    def read(self, start: int, length: int) -> bytes:
        """`length` bytes from `start`, fewer where the file ends.

        Raises:
            ValueError: it cannot be read, or has changed.
        """
        out = np.empty(max(0, min(length, self.size - start)), np.uint8)
        self.read_into(out, start)
        return out.tobytes()

    def read_into(self, out: np.ndarray, start: int) -> None:
        """Fill `out`, uint8 (length,), with the bytes from `start`; errors as `read`."""
        BLOCKS.read_into(self, out, start)

    def fetch(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """The bytes of each range, asked for together where the store can do that."""
        if time.monotonic() - _looked_at.get(self.url, 0.0) > LOOK_AGAIN:
            self._check()
        files, path = _filesystem(self.url)
        starts, stops = zip(*ranges, strict=True)
        try:
            found = files.cat_ranges(
                [path] * len(ranges), list(starts), list(stops), on_error="raise"
            )
            for piece in found:
                if isinstance(piece, Exception):  # some stores return what they should raise
                    raise piece
        except Exception as error:  # every store has errors of its own
            raise _refusal(self.url, error) from None
        for piece, start, stop in zip(found, starts, stops, strict=True):
            if len(piece) == stop - start:
                continue
            self._check()
            if len(piece) > stop - start:
                raise ValueError(
                    f"{self} is not read in ranges: asked for {stop - start:,} bytes its server "
                    f"sent {len(piece):,}; copy the file here, or serve it by one that can."
                )
            raise ValueError(
                f"{self} ended early: {len(piece):,} of {stop - start:,} bytes came from byte "
                f"{start:,} on, but it has {self.size:,}."
            )
        return [bytes(piece) for piece in found]

    def _check(self) -> None:
        """Look again at a file.

        Raises:
            ValueError: it is another one by now.
        """
        found = look_at(self.url)
        if found != self:
            what = "was written to"
            if found.size != self.size:
                what = f"had {self.size:,} bytes and has {found.size:,} now"
            raise ValueError(
                f"the data file {self} {what} while it was in use; work on a copy that nobody "
                "changes, and resume with the same bytes or start anew."
            )


def look_at(url: str) -> RemoteFile:
    """The file behind an address.

    Raises:
        ValueError: there is none, or its store does not say how long it is.
        ModuleNotFoundError: the package for its kind of address is not installed.
    """
    files, path = _filesystem(url)
    try:
        files.invalidate_cache()
        return _file(url, files.info(path))
    except ValueError:
        raise
    except Exception as error:
        raise _refusal(url, error) from None


def find_remote(url: str) -> tuple[list[RemoteFile], str]:
    """The files that an address stands for, sorted: one, those below a folder, or of a glob.

    Returns:
        the files, and the address of the folder where it is one, else "".

    Raises:
        ValueError: there is none.
        ModuleNotFoundError: the package for its kind of address is not installed.
    """
    files, path = _filesystem(url)
    try:
        if not re.search(r"[*\[]", path):
            if not files.isdir(path) or url.lower().startswith("http"):
                return [look_at(url)], ""
            found = files.find(path, detail=True)
            folder = files.unstrip_protocol(path).rstrip("/")
        else:
            found, folder = files.glob(path, detail=True), ""
    except (ValueError, ModuleNotFoundError):
        raise
    except Exception as error:
        raise _refusal(url, error) from None
    if "::" in url and found:
        raise ValueError(f"data.path={url!r} is an address by way of another; name single files.")
    listed = [
        _file(files.unstrip_protocol(name), info)
        for name, info in sorted(found.items())
        if info.get("type") == "file"
    ]
    shown = [one for one in listed if not any(p.startswith(".") for p in one.path.parts)]
    if not shown:
        what = "holds no files" if folder else "matches no file"
        raise ValueError(f"data.path={url!r} {what}.")
    return shown, folder


def _file(url: str, info: dict[str, Any]) -> RemoteFile:
    size = info.get("size")
    if info.get("type") == "directory":
        raise ValueError(f"data.path={url!r} is a folder; name a file in it, or a glob.")
    if not isinstance(size, int):
        raise ValueError(
            f"data.path={url!r} cannot be read in ranges: its server does not say how long it is; "
            "copy it here."
        )
    _looked_at[url] = time.monotonic()
    return RemoteFile(url, size, " ".join(str(info[k]) for k in _VERSIONS if info.get(k)))


def _filesystem(url: str) -> tuple[Any, str]:
    """What reads an address, and the path in it. The package keeps one for each process."""
    need("fsspec", f"data.path={url!r}")
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except ImportError as error:
        cause = error if isinstance(error, ModuleNotFoundError) else error.__cause__
        package = (getattr(cause, "name", "") or "").partition(".")[0]
        if not package:
            raise _refusal(url, error) from None
        raise ModuleNotFoundError(
            f"data.path={url!r} needs the package {package}, which is not installed: "
            f"{how_to_get(package)}",
            name=package,
        ) from None
    except Exception as error:
        raise _refusal(url, error) from None


def _refusal(url: str, error: Exception) -> ValueError:
    """What to say for an error of a store."""
    shown = re.sub(r"//[^/@]*@", "//", url)
    if isinstance(error, FileNotFoundError):
        return ValueError(f"the data must exist, got path={shown!r}; look at its spelling.")
    reason = shorten(str(error), 200) or type(error).__name__
    return ValueError(f"{shown} cannot be read: {reason.rstrip('.')}.")
