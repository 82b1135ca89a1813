"""Which files hold text: by their suffix, and by what they begin with."""

from __future__ import annotations

from pathlib import Path

from foveal.data.pictures import SUFFIXES
from foveal.data.remote import RemoteFile
from foveal.data.tables import is_table
from foveal.data.text_files import is_packed, mark_of, unpacked_name
from foveal.data.walk import LeftOut, printable

_BINARY = {
    *SUFFIXES,
    *(".heic", ".heif", ".raw16", ".psd", ".mp3", ".wav", ".flac", ".ogg", ".m4a", ".aac"),
    *(".mp4", ".avi", ".mov", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv"),
    *(".zip", ".tar", ".tgz", ".tbz2", ".txz", ".7z", ".rar", ".jar", ".whl", ".egg", ".iso"),
    *(".dmg", ".deb", ".rpm", ".cab", ".lz4", ".lz", ".z", ".br"),
    *(".pyc", ".pyo", ".pyd", ".so", ".dll", ".dylib", ".exe", ".o", ".a", ".obj", ".lib"),
    *(".class", ".wasm", ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".ppt", ".pptx", ".odt"),
    *(".ods", ".epub", ".mobi", ".djvu", ".npy", ".npz", ".pt", ".pth", ".ckpt", ".safetensors"),
    *(".pkl", ".pickle", ".joblib", ".h5", ".hdf5", ".onnx", ".gguf", ".arrow", ".feather"),
    *(".orc", ".avro", ".mat", ".rds", ".tfrecord", ".db", ".sqlite", ".sqlite3", ".mdb"),
    *(".ttf", ".otf", ".woff", ".woff2", ".eot"),
}
_MAGIC = {
    b"\x1f\x8b": "a gzip file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ\0": "an xz file",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
    b"PK\x03\x04": "a zip archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a": "a RAR archive",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"%PDF-": "a PDF",
    b"\x7fELF": "a program",
    b"\x93NUMPY": "an array",
    b"PAR1": "a Parquet table",
    b"SQLite format 3": "a database",
}
LOOKED_AT = 8192
"""Bytes at the beginning of a file that tell what it is."""


def why_no_text(path: Path, head: bytes) -> str | None:
    """What a file is that cannot be text, or None; a tar is known by the place of its magic.

    Args:
        head: its first bytes, unpacked if it is packed.
    """
    if unpacked_name(path).suffix.lower() in _BINARY:
        return f"a {unpacked_name(path).suffix.lower()} file"
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    return "a tar archive" if head[257:262] == b"ustar" else None


def looks_binary(head: bytes) -> bool:
    """Whether there is a NUL byte at the beginning, which no text has but UTF-16 with a mark."""
    return b"\0" in head[:LOOKED_AT] and mark_of(head)[1] == "utf-8"


def head_of(path: Path | RemoteFile) -> bytes:
    """The first bytes of a file as it lies.

    Raises:
        ValueError: it cannot be read.
    """
    if isinstance(path, RemoteFile):
        return path.read(0, LOOKED_AT)
    try:
        with path.open("rb") as file:
            return file.read(LOOKED_AT)
    except OSError as error:
        raise ValueError(f"{printable(path)} cannot be read: {error.strerror}.") from None


def keep_texts(files: list[Path], left: LeftOut, *, tables: bool) -> list[Path]:
    """Those of many files that hold text; the others are counted by suffix in `left`.

    Args:
        tables: keep tables instead, of which a column is read.
    """
    kept = []
    for path in files:
        if tables or is_table(path):
            wanted = tables and is_table(path, json_too=True)
        elif is_packed(path):
            wanted = unpacked_name(path).suffix.lower() not in _BINARY
        else:
            head = b"" if path.suffix.lower() in _BINARY else head_of(path)
            wanted = why_no_text(path, head) is None and not looks_binary(head)
        if wanted:
            kept.append(path)
        else:
            left.add_file(path)
    return kept
