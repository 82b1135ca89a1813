"""Token ids in files, larger than memory: raw arrays of whole numbers, or .npy."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foveal.data.corpus import Corpus, Span
from foveal.data.remote import RemoteFile, find_remote, is_remote
from foveal.data.sources import find_files
from foveal.data.text_kinds import head_of
from foveal.data.walk import LeftOut, data_path, printable, walk

_ARRAY = ".npy"


def open_tokens(path: str, dtype: Any = None) -> TokenCorpus:
    """The tokens of a file, a glob, or all files below a folder, as one long array on disk.

    Args:
        path: raw arrays of whole numbers as they lie, or .npy of one axis; here or behind an
            address, such as "s3://bucket/*.bin".
        dtype: of the raw ones, such as "uint16".

    Raises:
        ValueError: nothing is there, an array of something else, or arrays of two kinds.
    """
    files: Sequence[Path | RemoteFile]
    if is_remote(path):
        files = find_remote(path)[0]
    else:
        target = data_path(path)
        files = walk(target, LeftOut()) if target.is_dir() else find_files(path)
    spans, kinds = [], {} if dtype is None else {_whole_numbers(dtype): "dtype"}
    for file in files:
        is_array = str(file).endswith(_ARRAY)
        span, kind = _array(file) if is_array else (Span(file, 0, _size(file)), None)
        if kind is not None:
            kinds.setdefault(kind, printable(file))
        spans.append(span)
    if len(kinds) > 1:
        told = ", ".join(f"{kind.name} of {whose}" for kind, whose in kinds.items())
        raise ValueError(f"the tokens of path={path!r} must be of one kind, got {told}.")
    if not kinds:
        raise ValueError(
            f"the tokens of path={path!r} need a dtype, such as dtype='uint16': only .npy says "
            "what it holds."
        )
    found = TokenCorpus(Corpus(printable(path), spans), next(iter(kinds)))
    if not len(found):
        raise ValueError(f"the data must not be empty, but path={path!r} holds no tokens.")
    return found


def _size(path: Path | RemoteFile) -> int:
    return path.size if isinstance(path, RemoteFile) else path.stat().st_size


def _array(path: Path | RemoteFile) -> tuple[Span, np.dtype]:
    """The numbers of a .npy, without reading them.

    Raises:
        ValueError: no such file, one that is cut off, or an array of several axes.
    """
    name, head = printable(path), io.BytesIO(head_of(path))
    try:
        version = np.lib.format.read_magic(head)
        read = {(1, 0): np.lib.format.read_array_header_1_0}
        shape, _, dtype = read.get(version, np.lib.format.read_array_header_2_0)(head)
    except ValueError as error:
        raise ValueError(f"{name} is not a readable .npy: {error}") from None
    if len(shape) != 1:
        raise ValueError(f"the tokens of {name} must be an array of one axis, got {shape}.")
    start, size = head.tell(), shape[0] * dtype.itemsize
    if start + size != _size(path):
        raise ValueError(
            f"{name} must hold {shape[0]:,} tokens of {dtype.name}, {size:,} bytes, but has "
            f"{_size(path) - start:,}: it is cut off or was added to."
        )
    return Span(path, start, start + size), _whole_numbers(dtype)


class TokenCorpus:
    """Tokens of two or more bytes each, read as one long array without loading them.

    Args:
        corpus: their bytes, each file a whole number of tokens.
        dtype: of a token in the files, such as "uint16"; also "<u2", ">u4" for an order of bytes.

    Raises:
        ValueError: no type of whole numbers, or a file that ends within a token.
    """

    def __init__(self, corpus: Corpus, dtype: Any) -> None:
        self.corpus, self.dtype, self.name = corpus, _whole_numbers(dtype), corpus.name
        size = self.dtype.itemsize
        for span in corpus.spans:
            if len(span) % size:
                raise ValueError(
                    f"the tokens of {printable(span.path)} must be {size} bytes each "
                    f"(dtype={self.dtype.name}), but it has {len(span):,} bytes; name another "
                    "dtype."
                )

    def __len__(self) -> int:
        return len(self.corpus) // self.dtype.itemsize

    def read(self, start: int, length: int) -> np.ndarray:
        """`length` tokens from token `start` on, as a new array (length,) of the dtype.

        Raises:
            ValueError: as `Corpus.read`.
        """
        size = self.dtype.itemsize
        return self.corpus.read(start * size, length * size).view(self.dtype)

    def warm(self, starts: Sequence[int], length: int) -> None:
        """As `Corpus.warm`, counted in tokens."""
        size = self.dtype.itemsize
        self.corpus.warm([start * size for start in starts], length * size)

    def places(self, start: int, length: int) -> np.ndarray:
        """Where the tokens of a window stand in their files, or in what of these it holds."""
        size = self.dtype.itemsize
        return self.corpus.places(start * size, length * size)[::size] // size


def _whole_numbers(dtype: Any) -> np.dtype:
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found.kind not in "iu":
        raise ValueError(
            f"the dtype of tokens must be one of whole numbers, such as 'uint16', got {dtype!r}."
        )
    return found
