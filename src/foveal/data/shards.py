"""Samples of webdataset archives (.tar), indexed once and then read where they lie.

The index of a tar says where the picture and the captions of each sample are. It is kept in the
cache folder under the tar's name, size and time, so that a tar is walked through once for all runs
and processes that read it unchanged.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from foveal.common.cache import cache_folders, make_private
from foveal.common.files import write_file
from foveal.common.locks import locked
from foveal.data.archives import archive_paths, expand, tar_members
from foveal.data.caption_entries import (
    KINDS,
    caption_order,
    captions_in_sample,
    kind_of,
    picture_of,
    sample_of,
)
from foveal.data.file_reader import OpenFiles
from foveal.data.images import Decoded, collect
from foveal.data.remote import BLOCKS, RemoteFile, find_remote, is_remote
from foveal.data.walk import LeftOut, printable

File = Path | RemoteFile

_FORM = 1
_PLACES = ("picture", "text")
_MAGIC, _MAGIC_AT = b"ustar", 257
_PATIENCE = 600.0
_WORTH = 1 << 20  # a smaller tar is walked through before its index is found
_CLASS, _JSON = "cls", "json"
_LABEL_KEYS = ("label", "cls", "class")


def tar_files(pattern: str) -> list[File]:
    """The archives that a path, a range or a glob names, here or behind an address.

    Raises:
        ValueError: there is none.
    """
    if not is_remote(pattern):
        return list(archive_paths(pattern))
    return [file for url in expand(pattern) for file in find_remote(url)[0]]


def is_plain_tar(file: File) -> bool:
    """Whether a file is a tar that is not packed, as its first block says."""
    head = b""
    if isinstance(file, RemoteFile):
        head = file.read(0, 512)
    else:
        with contextlib.suppress(OSError), file.open("rb") as stream:
            head = stream.read(512)
    return head[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] == _MAGIC


@dataclass(frozen=True)
class TarIndex:
    """Where the samples of one tar are.

    Attributes:
        picture: place and length of each picture, int64 (n, 2).
        text: of the member with its captions, (n, 2); zeros where there are none.
        suffix: of that member, by its place in `caption_order`, uint8 (n,).
        count: captions of each, int32 (n,).
        label: its class in `classes`, int32 (n,); -1 where it has none.
        names: what the samples are called, back to back in UTF-8, uint8 (bytes,).
        name: where the name of each begins in them, and where the last ends, int64 (n + 1,).
        told: as JSON: `classes`, what was left out, and what is wrong with single samples.
    """

    picture: np.ndarray
    text: np.ndarray
    suffix: np.ndarray
    count: np.ndarray
    label: np.ndarray
    names: np.ndarray
    name: np.ndarray
    told: dict[str, Any]

    def __len__(self) -> int:
        return len(self.picture)


class Shards:
    """The samples of many tars as one list; their bytes are read when they are asked for.

    Args:
        files: the tars.
        column: key of the captions in .json members, where those are meant.
        left: what the tars hold besides samples is counted there.

    Attributes:
        counts: captions of each sample, int32 (n,).
        labels: class of each in `classes`, int64 (n,); -1 where it has none.
    """

    def __init__(self, files: Sequence[File], column: str, left: LeftOut) -> None:
        self.files, self.column = list(files), column
        self._open = OpenFiles(self.files)
        self._parts = [self._index(file) for file in self.files]
        for part in self._parts:
            left.add_told(part.told["left"])
        sizes = [len(part) for part in self._parts]
        self._first = np.cumsum([0, *sizes])
        self.counts = np.concatenate([part.count for part in self._parts])
        self.classes = sorted({name for part in self._parts for name in part.told["classes"]})
        places = {name: place for place, name in enumerate(self.classes)}
        self.labels = np.concatenate([_renamed(part, places) for part in self._parts])

    def __len__(self) -> int:
        return int(self._first[-1])

    def called(self, number: int) -> str:
        """What to call a sample in messages."""
        part, row, file = self._at(number)
        raw = part.names[part.name[row] : part.name[row + 1]].tobytes()
        return f"{printable(raw.decode('utf-8', 'surrogateescape'))} of {_last(file)}"

    def problem(self, number: int) -> str:
        """What is wrong with its captions; "" for nothing."""
        part, row, _ = self._at(number)
        return str(part.told["bad"].get(str(row), ""))

    def picture(self, number: int) -> bytes:
        """The file of a picture."""
        part, row, file = self._at(number)
        return self._read(file, *part.picture[row])

    def captions(self, number: int) -> list[str]:
        """The captions of a sample."""
        part, row, file = self._at(number)
        if not part.count[row]:
            return []
        suffix = caption_order(self.column)[part.suffix[row]]
        sample = {suffix: self._read(file, *part.text[row])}
        return captions_in_sample(sample, self.called(number), self.column)

    def decode(self, numbers: np.ndarray, size: int) -> Decoded:
        """The pictures of samples, int64 (n,): uint8 (n, size, size, 3), and what was wrong."""
        self.warm(numbers.tolist())
        jobs = ((partial(self.picture, i), size, self.called(i)) for i in numbers.tolist())
        return collect(jobs, len(numbers), size)

    def warm(self, numbers: Sequence[int]) -> None:
        """Fetch together what lies far away of samples that are read next."""
        wanted: dict[RemoteFile, list[tuple[int, int]]] = {}
        for number in numbers:
            part, row, file = self._at(number)
            if isinstance(file, RemoteFile):
                places = (part.picture[row].tolist(), part.text[row].tolist())
                wanted.setdefault(file, []).extend((a, b) for a, b in places if b)
        for file, ranges in wanted.items():
            BLOCKS.warm(file, ranges)

    def _at(self, number: int) -> tuple[TarIndex, int, File]:
        shard = int(np.searchsorted(self._first, number, side="right")) - 1
        return self._parts[shard], int(number - self._first[shard]), self.files[shard]

    def _read(self, file: File, start: int, length: int) -> bytes:
        out = np.empty(length, np.uint8)
        self._open.read_into(file, out, int(start))
        return out.tobytes()

    def _index(self, file: File) -> TarIndex:
        if isinstance(file, RemoteFile):
            known: list[Any] = [file.url, file.size, file.version]
        else:
            stamp = self._open.stamp(file)
            known = [str(file.resolve()), stamp.size, stamp.changed, stamp.inode]
        if known[1] < _WORTH:
            return build_index(file, self.column, self._read)
        words = json.dumps([_FORM, self.column, *known])
        name = f"{hashlib.sha256(words.encode()).hexdigest()[:32]}.npz"
        return _kept(name, lambda: build_index(file, self.column, self._read))


class Captions(Sequence[list[str]]):
    """The captions of all samples, read when they are asked for.

    Args:
        shards: where they lie.
    """

    def __init__(self, shards: Shards) -> None:
        self.shards, self.counts = shards, shards.counts.astype(np.int64)

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self.shards.captions(row) for row in range(len(self))[number]]
        return self.shards.captions(int(number))


# -- the index ------------------------------------------------------------------------------------


class _Texts(Mapping[str, bytes]):
    """The members of a sample by suffix, read when asked for."""

    def __init__(
        self, places: dict[str, tuple[int, int]], read: Callable[[int, int], bytes]
    ) -> None:
        self._places, self._read = places, read

    def __getitem__(self, suffix: str) -> bytes:
        return self._read(*self._places[suffix])

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def build_index(file: File, column: str, read: Callable[[File, int, int], bytes]) -> TarIndex:
    """Walk through a tar; pictures are passed over, captions and classes are looked at.

    Args:
        read: (file, place, length) -> bytes.
    """
    left = LeftOut()
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    with _stream(file) as stream:
        for name, start, length in tar_members(stream, str(printable(file)), left):
            key, suffix = sample_of(name)
            if kind_of(suffix) in KINDS or suffix == _CLASS:
                samples.setdefault(key, {})[suffix] = (start, length)
            else:
                left.add_file(Path(printable(name.rpartition("/")[2])))
    rows: list[tuple[Any, ...]] = []
    bad: dict[str, str] = {}
    for key, places in samples.items():
        called = f"{printable(key)} of {_last(file)}"
        picture = picture_of(places, called, left)
        if picture is None:
            continue
        texts = _Texts(places, lambda start, length: read(file, start, length))
        captions, which, label = 0, 0, ""
        try:
            label = _label_of(texts)
            captions, which = _captions_of(texts, called, column)
        except ValueError as error:
            bad[str(len(rows))] = str(error)
        text = places[caption_order(column)[which]] if captions else (0, 0)
        raw = key.encode("utf-8", "surrogateescape")
        rows.append((places[picture], text, which, captions, label, raw))
    return _as_arrays(rows, {"left": left.to_dict(), "bad": bad})


def _captions_of(texts: Mapping[str, bytes], called: str, column: str) -> tuple[int, int]:
    """How many captions a sample has, and which of its members has them."""
    for number, suffix in enumerate(caption_order(column)):
        if suffix in texts:
            found = captions_in_sample({suffix: texts[suffix]}, called, column)
            if found:
                return len(found), number
    return 0, 0


def _label_of(texts: Mapping[str, bytes]) -> str:
    """The class of a sample: what a .cls holds, or a .json under "label"; "" for none."""
    if _CLASS in texts:
        return texts[_CLASS].decode("utf-8", "replace").strip()
    if _JSON in texts:
        with contextlib.suppress(ValueError, RecursionError):
            found = json.loads(texts[_JSON])
            for key in _LABEL_KEYS if isinstance(found, dict) else ():
                if isinstance(found.get(key), str | int):
                    return str(found[key]).strip()
    return ""


def _as_arrays(rows: list[tuple[Any, ...]], told: dict[str, Any]) -> TarIndex:
    pictures, texts, suffixes, counts, labels, names = (
        zip(*rows, strict=True) if rows else [()] * 6
    )
    classes = sorted(set(labels) - {""})
    numbers = {name: number for number, name in enumerate(classes)} | {"": -1}
    return TarIndex(
        np.array(pictures, np.int64).reshape(-1, 2),
        np.array(texts, np.int64).reshape(-1, 2),
        np.array(suffixes, np.uint8),
        np.array(counts, np.int32),
        np.array([numbers[label] for label in labels], np.int32),
        np.frombuffer(b"".join(names), np.uint8),
        np.cumsum([0, *map(len, names)]).astype(np.int64),
        {"classes": classes, **told},
    )


def _renamed(part: TarIndex, places: dict[str, int]) -> np.ndarray:
    """The labels of a tar as places among the classes of all."""
    table = np.array([*(places[name] for name in part.told["classes"]), -1], np.int64)
    return table[part.label]


def _last(file: File) -> str:
    return printable(file.path.name if isinstance(file, RemoteFile) else file.name)


class _FarStream(io.RawIOBase):
    """A file behind an address as one that is read and sought in."""

    def __init__(self, file: RemoteFile) -> None:
        self._file, self._place = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._file.size}[whence]
        self._place = start + offset
        return self._place

    def read(self, size: int = -1) -> bytes:
        found = self._file.read(self._place, self._file.size if size < 0 else size)
        self._place += len(found)
        return found


def _stream(file: File) -> Any:
    return _FarStream(file) if isinstance(file, RemoteFile) else file.open("rb")


def _kept(name: str, build: Callable[[], TarIndex]) -> TarIndex:
    """An index from the cache, or built and kept there; without a cache it is built."""
    folders = cache_folders("shards")
    for folder in folders:
        if (found := _load(folder / name)) is not None:
            return found
    for folder in folders:
        with contextlib.suppress(OSError):
            make_private(folder)
            # another process may be at it
            with locked(folder / f".{name}.lock", _PATIENCE):
                found = _load(folder / name)
                if found is None:
                    found = build()
                    write_file(folder / name, lambda path: _save(path, found))  # noqa: B023
            return found
    return build()


def _save(path: Path, index: TarIndex | None) -> None:
    assert index is not None
    arrays = {key: value for key, value in vars(index).items() if key != "told"}
    told = np.frombuffer(json.dumps(index.told).encode(), np.uint8)
    with path.open("wb") as stream:
        np.savez(stream, told=told, **arrays)


def _load(path: Path) -> TarIndex | None:
    """An index that is there and whole, else None."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as found:
            arrays = {key: found[key] for key in found.files}
        told = json.loads(arrays.pop("told").tobytes())
        return TarIndex(**arrays, told=told)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
