"""Tokens of two bytes and more, read from files in pieces."""

import numpy as np
import pytest
import torch

from foveal.data import TextStream, open_tokens


@pytest.mark.parametrize("kind", ["uint16", "int32", ">u4", "uint8"])
@pytest.mark.parametrize("suffix", [".bin", ".npy"])
def test_windows_of_several_files(tmp_path, kind, suffix):
    """Raw arrays and .npy of every type are one array, whatever the order of their bytes."""
    whole = np.arange(200).astype(kind)
    for name, part in (("a", whole[:90]), ("b", whole[90:])):
        path = tmp_path / f"{name}{suffix}"
        np.save(path, part) if suffix == ".npy" else path.write_bytes(part.tobytes())
    dtype = None if suffix == ".npy" else kind
    for where in (str(tmp_path), str(tmp_path / f"*{suffix}")):
        found = open_tokens(where, dtype)
        assert len(found) == 200
        assert found.read(80, 20).tolist() == list(range(80, 100))
        assert found.places(85, 10).tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
    inputs, targets = TextStream(found, 16, 4).next()
    assert inputs.dtype == torch.int64
    assert torch.equal(inputs + 1, targets)


def test_faults_are_named(tmp_path):
    """No dtype, half a token, several axes, a cut file, two kinds, no numbers, no tokens."""
    (tmp_path / "raw.bin").write_bytes(b"12345")
    (tmp_path / "empty.bin").write_bytes(b"")
    np.save(tmp_path / "square.npy", np.zeros((2, 2), np.int32))
    np.save(tmp_path / "short.npy", np.zeros(4, np.int32))
    np.save(tmp_path / "text.npy", np.array(["a"]))
    np.save(tmp_path / "cut.npy", np.zeros(40, np.uint8))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-3])
    (tmp_path / "no.npy").write_bytes(b"nothing")
    for name, dtype, said in (
        ("raw.bin", None, "need a dtype, such as"),
        (
            "raw.bin",
            "uint16",
            r"must be 2 bytes each \(dtype=uint16\), but it has 5 bytes",
        ),
        ("raw.bin", "float32", "must be one of whole numbers.*'float32'"),
        ("raw.bin", "words", "must be one of whole numbers.*'words'"),
        ("empty.bin", "uint16", "holds no tokens"),
        ("square.npy", None, r"one axis, got \(2, 2\)"),
        ("text.npy", None, "whole numbers"),
        ("cut.npy", None, "must hold 40 tokens of uint8, 40 bytes, but has 37"),
        ("no.npy", None, "no.npy is not a readable .npy"),
        ("short.npy", "uint16", "of one kind, got uint16 of dtype, int32 of .*short.npy"),
        ("none.bin", "uint16", "the data must exist"),
    ):
        with pytest.raises(ValueError, match=said):
            open_tokens(str(tmp_path / name), dtype)
