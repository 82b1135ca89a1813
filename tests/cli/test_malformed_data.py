"""Malformed data of every kind: exit code 2, one line, nothing written or left half-written."""

import gzip
import io
import os
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
from malformed import png, refuse


def tar(path, **members):
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name.replace("_", "."))
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def entries(path, *given):
    """A tar of links and devices: name, what it links to, type."""
    with tarfile.open(path, "w") as archive:
        for name, target, kind in given:
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, target
            archive.addfile(entry)


def npz(path, **arrays):
    np.savez(path, **arrays)


def folder(root, **files):
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


GREY = np.full((6, 8, 8, 3), 9, np.uint8)
LABELS = np.array([0, 1] * 3)

TEXTS = {
    "an empty file": lambda p: p.write_bytes(b""),
    "one byte": lambda p: p.write_bytes(b"x"),
    "an empty folder": lambda p: p.mkdir(),
    "a folder of empty files": lambda p: folder(p, a_txt=b"", b_txt=b""),
    "a folder of hidden files": lambda p: folder(p, _a=b"secret" * 100),
    "a FIFO": lambda p: os.mkfifo(p),
    "a link to nowhere": lambda p: p.symlink_to("nowhere"),
    "a link to itself": lambda p: p.symlink_to(p),
    "a link to a device": lambda p: p.symlink_to("/dev/zero"),
}
PACKED = {
    "x.gz": lambda p: p.write_bytes(b"no gzip"),
    "y.gz": lambda p: p.write_bytes(gzip.compress(b"text " * 5000)[:-20]),
    "z.bz2": lambda p: p.write_bytes(b"BZh9 no"),
    "x.xz": lambda p: p.write_bytes(b"\xfd7zXZ\x00 no"),
    "x.jsonl": lambda p: p.write_bytes(b"[1, 2]\n" * 50),
    "x.parquet": lambda p: p.write_bytes(b"PAR1 no"),
    "x.zst": lambda p: p.write_bytes(b"\x28\xb5\x2f\xfd\0\0"),
    "z.jsonl": lambda p: p.write_bytes(b'{"text": 1e999}\n' * 99),
    "x.csv": lambda p: p.write_bytes(b"a,b\n\0\0,1\n"),
    "y.jsonl": lambda p: p.write_bytes(b"[" * 100_000 + b"\n"),
}


@pytest.mark.parametrize("name", [*TEXTS, *PACKED])
def test_texts(work, capsys, name):
    """Nothing to read, nothing that ends, and archives that are none."""
    path = work / (name if name in PACKED else "data")
    {**TEXTS, **PACKED}[name](path)
    refuse(capsys, work, ["train", "text.toml", "--data", path])
    refuse(capsys, work, ["evaluate", "text-run", "--data", path])


def lying(path, shape):
    """An archive whose array says that it has another shape."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", b"\x93NUMPY\x01\0v\0" + header.encode())


SETS = {
    "missing": lambda p: None,
    "a file": lambda p: p.write_bytes(b"x"),
    "an empty folder": lambda p: p.mkdir(),
    "no pictures": lambda p: folder(p, a__x_txt=b"x", b__y_txt=b"y"),
    "one class": lambda p: folder(p, **{f"a__{i}_png": png() for i in range(4)}),
    "only damaged pictures": lambda p: folder(
        p, **{f"{c}__{i}_png": b"no" for c in "ab" for i in range(4)}
    ),
    "a FIFO": lambda p: os.mkfifo(p),
}
ARCHIVES = {
    "no archive": lambda p: p.write_bytes(b"no archive"),
    "cut": lambda p: (npz(p, images=GREY, label=LABELS), p.write_bytes(p.read_bytes()[:-99])),
    "no labels": lambda p: npz(p, images=GREY),
    "no images": lambda p: npz(p, label=LABELS),
    "fewer labels": lambda p: npz(p, images=GREY, label=LABELS[:3]),
    "labels below zero": lambda p: npz(p, images=GREY, label=LABELS - 1),
    "labels that are no integers": lambda p: npz(p, images=GREY, label=LABELS + 0.5),
    "labels that are no numbers": lambda p: npz(p, images=GREY, label=LABELS * np.nan),
    "labels of two axes": lambda p: npz(p, images=GREY, label=LABELS.reshape(2, 3)),
    "pictures that are NaN": lambda p: npz(p, images=GREY * np.nan, label=LABELS),
    "pictures of one axis": lambda p: npz(p, images=GREY[:, 0, 0, 0], label=LABELS),
    "pictures of text": lambda p: npz(p, images=np.array(["a"] * 6), label=LABELS),
    "objects": lambda p: npz(p, images=np.array([{}] * 6), label=LABELS),
    "pictures without end": lambda p: lying(p, (10**12, 32, 32, 3)),
    "pictures below zero": lambda p: lying(p, (-6, 32, 32, 3)),
    "a zip of something else": lambda p: zipfile.ZipFile(p, "w").writestr("a.txt", "x"),
    "a folder": lambda p: p.mkdir(),
}


@pytest.mark.parametrize("name", SETS)
def test_folders_of_pictures(work, capsys, name):
    """Folders without classes, without pictures, and what is no folder."""
    SETS[name](work / "data")
    refuse(capsys, work, ["train", "pictures.toml", "--data", work / "data"])


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_of_pictures(work, capsys, name):
    """Arrays that are missing, of other shapes and kinds, and files that are no archive."""
    ARCHIVES[name](work / "data.npz")
    refuse(capsys, work, ["train", "pictures.toml", "--data", work / "data.npz"])


CAPTIONED = {
    "no tar.tar": lambda p: p.write_bytes(b"no tar" * 200),
    "empty.tar": lambda p: p.write_bytes(b""),
    "nothing.tar": lambda p: tar(p),
    "no pictures.tar": lambda p: tar(p, a_txt=b"x", b_txt=b"y"),
    "no captions.tar": lambda p: tar(p, a_png=png(), b_png=png()),
    "damaged pictures.tar": lambda p: tar(p, a_png=b"x", a_txt=b"x", b_png=b"x", b_txt=b"y"),
    "links.tar": lambda p: entries(p, ("a.png", "/etc/passwd", tarfile.SYMTYPE)),
    "a device.tar": lambda p: entries(p, ("a.png", "", tarfile.CHRTYPE)),
    "a FIFO.tar": lambda p: entries(p, ("a.png", "", tarfile.FIFOTYPE), ("a.txt", "a.png", b"1")),
    "cut.tar": lambda p: (
        tar(p, a_png=png(), a_txt=b"x", b_png=png(), b_txt=b"y"),
        p.write_bytes(p.read_bytes()[:700]),
    ),
    "no captions": lambda p: folder(p, a_png=png(), b_png=png()),
    "a table of numbers": lambda p: folder(p, metadata_jsonl=b"1\n2\n", a_png=png()),
    "a table of lists": lambda p: folder(p, metadata_jsonl=b"[]\n[1]\n", a_png=png()),
    "a table of what is not there": lambda p: folder(
        p, metadata_jsonl=b'{"file_name": "x.png", "text": "x"}\n' * 2
    ),
    "a table that is not text": lambda p: folder(p, metadata_jsonl=b"\xff\xfe\xfd", a_png=png()),
}


@pytest.mark.parametrize("name", CAPTIONED)
def test_captioned_pictures(work, capsys, name):
    """Tars, tables and folders of which no captioned picture can be had."""
    CAPTIONED[name](work / name)
    refuse(capsys, work, ["train", "vae.toml", "--data", work / name])


def swollen():
    """A chunk of text for a PNG that unpacks to 80 MB."""
    text = b"zTXta\0\0" + zlib.compress(bytes(80 << 20), 1)
    return struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))


PICTURES = {
    "empty": lambda p: p.write_bytes(b""),
    "text": lambda p: p.write_bytes(b"hello"),
    "cut": lambda p: p.write_bytes(png((64, 64))[:60]),
    "a drawing": lambda p: p.write_bytes(b"<svg/>"),
    "a program": lambda p: p.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    "a TIFF that goes round": lambda p: p.write_bytes(b"II*\0\x08\0\0\0\0\0\x08\0\0\0"),
    "text that swells": lambda p: p.write_bytes(png()[:33] + swollen() + png()[33:]),
    "a header alone": lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n"),
    "a bomb": lambda p: p.write_bytes(png()[:16] + (60000).to_bytes(4, "big") * 2 + png()[24:]),
    "a folder": lambda p: p.mkdir(),
    "a FIFO": lambda p: os.mkfifo(p),
    "a device": lambda p: p.symlink_to("/dev/zero"),
    "missing": lambda p: None,
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(work, capsys, name):
    """Files that are no picture, and what would never end."""
    PICTURES[name](work / "a.png")
    refuse(capsys, work, ["predict", "pictures-run", "a.png"])
    refuse(capsys, work, ["draw", "attention", "pictures-run", "a.png"])


def test_there_are_many():
    """What the tables above hold."""
    tables = (TEXTS, PACKED, SETS, ARCHIVES, CAPTIONED, PICTURES)
    assert sum(map(len, tables)) >= 55
