"""ONNX: onnxruntime gives the model's numbers, without torch or foveal, at sizes of any kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lively import lively

import foveal
from foveal import export
from foveal import patterns as P
from foveal.export.onnx import serialized, to_onnx

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

TOKENS: dict[str, Any] = {"num_tokens": 20, "dim": 16, "heads": 2, "dim_head": 8}
LONG = 16_384
long = pytest.mark.skipif("FOVEAL_LONG" not in os.environ, reason="a minute each; FOVEAL_LONG=1")


def window() -> Any:
    sizes: dict[str, Any] = {"dim": 64, "heads": 1, "dim_head": 64, "ff_mult": 1, "depth": 1}
    patterns = P.SlidingWindow(128)
    return foveal.TransformerLM(num_tokens=16, **sizes, max_seq_len=LONG, pattern=patterns)


def levels() -> Any:
    return foveal.HTransformer1D(**TOKENS, depth=1, max_seq_len=300, causal=True, block_size=8)


def hourglass() -> Any:
    sizes: dict[str, Any] = {"depth": (1, (1, 1, 1), 1), "shorten_factor": 2, "max_seq_len": 96}
    return foveal.HourglassTransformerLM(**TOKENS, **sizes)


def dalle() -> Any:
    kinds = ("full", "axial_row", "axial_col", "conv_like")
    tokens = {"num_text_tokens": 20, "text_seq_len": 6, "num_image_tokens": 9, "image_grid": 6}
    return foveal.DALLE(dim=16, depth=4, heads=2, dim_head=8, **tokens, attn_types=kinds)


def halonet() -> Any:
    sizes = {"depths": (1, 1), "dims": (8, 8), "heads": (2, 2), "stem_dim": 8}
    return foveal.HaloNet(**sizes, strides=(1, 2), num_classes=3)


def sepvit() -> Any:
    sizes: dict[str, Any] = {"depths": (1, 1), "dims": (8, 16), "heads": (1, 2)}
    windows = {"window_sizes": ((7,), (7, 14)), "strides": (4, 2)}
    return foveal.create_model("sepvit_lite", **sizes, **windows, num_classes=3)


def tokens(*lengths: int) -> Any:
    """Inputs of models that read tokens below 9: one of each length."""
    return [torch.randint(9, (2 + len(lengths), length)) for length in lengths]


SIZES: dict[Any, list[Any]] = {
    levels: [tokens(3), tokens(211)],
    hourglass: [tokens(7), tokens(93)],
    dalle: [tokens(4, 5), tokens(6, 31)],
    halonet: [[torch.rand(1, 3, 226, 231)], [torch.rand(2, 3, 250, 240)]],
    sepvit: [[torch.rand(1, 3, 226, 231)], [torch.rand(2, 3, 250, 240)]],
}


@pytest.mark.parametrize(
    "make",
    [pytest.param(one, marks=long) for one in SIZES],
)
def test_onnxruntime_gives_the_logits(make: Any, tmp_path: Path) -> None:
    """To 1e-4, at two sizes that were not traced; its file says what it is."""
    torch.manual_seed(0)
    model = make().eval()
    if make in (halonet, sepvit):
        model = lively(model)
    about = export.save(model, tmp_path / "model.onnx", "onnx")
    program = export.open_program(tmp_path / "model.onnx")
    assert program.about == about
    assert about["family"] == model.family
    traced = [one.example for one in export.inputs_of(model)]
    for given in SIZES[make]:
        assert [tuple(x.shape) for x in given] != traced
        with torch.no_grad():
            wanted = model(*given)
        torch.testing.assert_close(program(*given), wanted, rtol=1e-4, atol=1e-4)


RUN = """
import json, sys
import numpy as np, onnxruntime
from pathlib import Path

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith("VmHWM")).split()[1]) * 1024

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
run = onnxruntime.InferenceSession("model.onnx", options)
facts = json.loads(run.get_modelmeta().custom_metadata_map["foveal"])
sizes = [one.shape for one in run.get_inputs()]
small = run.run(None, {"tokens": np.load("small.npy")})[0]
np.save("small-out.npy", small)
Path("/proc/self/clear_refs").write_text("5")
before = peak()
out = run.run(None, {"tokens": np.load("large.npy")})[0]
added = peak() - before
np.save("large-out.npy", out)
assert "torch" not in sys.modules and "foveal" not in sys.modules
print(json.dumps([facts["family"], sizes, added]))
"""


def test_a_window_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process with onnxruntime alone gets the logits at two lengths; at 16,384 tokens it takes
    less than a quarter of n x n numbers more, for its one head. Names of sizes and facts are in
    the file.

    Of the same file: other sizes, damaged copies and what differs from the model are refused.
    """
    torch.manual_seed(0)
    model = window().eval()
    traced = export.program(model)
    export.save(model, tmp_path / "model.onnx", "onnx", program=traced)
    assert [one.name for one in tmp_path.iterdir()] == ["model.onnx"]
    given = {"small": torch.randint(16, (3, 77)), "large": torch.randint(16, (1, LONG))}
    for name, x in given.items():
        np.save(tmp_path / f"{name}.npy", x.numpy())
    done = subprocess.run(
        [sys.executable, "-c", RUN], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    family, sizes, added = json.loads(done.stdout)
    assert (family, sizes) == ("transformer", [["batch", "length"]])
    for name, x in given.items():
        found = torch.from_numpy(np.load(tmp_path / f"{name}-out.npy"))
        with torch.no_grad():
            torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-4)
    assert added < LONG * LONG * 4 / 4, added

    program = export.open_program(tmp_path / "model.onnx")
    told = repr(program).splitlines()
    assert told[0] == f"OpenedProgram({str(tmp_path / 'model.onnx')!r}, float32 transformer"
    assert told[1] == f"  tokens: int64 (batch 1 or more, length 1 to {LONG}), each below 16"
    assert told[2].startswith("  differs: from the model by ")
    with pytest.raises(ValueError, match=rf"length 16385, but .* was exported for 1 to {LONG};"):
        program(torch.zeros(1, LONG + 1, dtype=torch.long))
    with pytest.raises(ValueError, match=r"tokens must be \(batch, length\) of int64"):
        program(torch.zeros(1, 5))
    with pytest.raises(ValueError, match=r"takes 1 inputs \(tokens\), got 2"):
        program(*given.values())
    raw = (tmp_path / "model.onnx").read_bytes()
    _refused_files(tmp_path, raw)
    import onnx

    graph, run = onnx.load_from_string(raw), export.OnnxProgram.__call__
    monkeypatch.setattr("foveal.export.files.to_onnx", lambda *_: graph)
    monkeypatch.setattr(export.OnnxProgram, "__call__", lambda *x: run(*x) + 1e-2)
    with pytest.raises(ValueError, match=r"the program differs from the model by 0\.01"):
        export.save(model, tmp_path / "model.onnx", "onnx", program=traced)
    assert (tmp_path / "model.onnx").read_bytes() == raw


def _refused_files(folder: Path, raw: bytes) -> None:
    """Damaged files and those of others: one line each."""
    import onnx

    foreign = onnx.load_from_string(raw)
    del foreign.metadata_props[:]
    for note in ("", "[]", "{}", '{"inputs": [3]}', "[" * 9000):
        del foreign.metadata_props[:]
        if note:
            foreign.metadata_props.add(key="foveal", value=note)
        (folder / "foreign.onnx").write_bytes(foreign.SerializeToString())
        with pytest.raises(ValueError, match=r"has no note of what it takes") as caught:
            export.open_program(folder / "foreign.onnx")
        assert "\n" not in str(caught.value)
    for damaged in (b"", b"\x00" * 50, raw[: len(raw) // 2], b"some text", b"PK\x03\x04", b"PK"):
        (folder / "bad.onnx").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"bad\.onnx") as caught:
            export.open_program(folder / "bad.onnx")
        assert "\n" not in str(caught.value)
    for missing in (folder, folder / "none.onnx", "a\x00b"):
        with pytest.raises(ValueError, match="an exported program must be a file"):
            export.open_program(missing)


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_told_by_its_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is traced, in one line; nothing is written."""
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("foveal.export.files.trace", pytest.fail)
    with pytest.raises(ModuleNotFoundError, match=rf"{package}.*'foveal\[onnx\]'"):
        export.save(halonet(), tmp_path / "model.onnx", "onnx")
    assert not list(tmp_path.iterdir())


def test_what_onnx_cannot_hold_is_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers by which onnxruntime could not be asked, and more than two gigabytes of them."""
    with pytest.raises(ValueError, match=r"bfloat16 on a CPU.*dtype='float32'"):
        to_onnx(None, {"dtype": "bfloat16"})  # type: ignore[arg-type]
    monkeypatch.setattr("foveal.export.files.trace", pytest.fail)
    with pytest.raises(ValueError, match=r"bfloat16 on a CPU.*dtype='float32'"):
        export.save(window().bfloat16(), tmp_path / "model.onnx", "onnx")
    model, huge = window(), torch.zeros(1).expand(500_000_001)
    model.register_buffer("more", huge, persistent=False)
    with pytest.raises(ValueError, match=r"at most 2,000,000,000 bytes, .* weights have 2,00"):
        export.save(model, tmp_path / "model.onnx", "onnx")
    program: Any = SimpleNamespace(state_dict={}, constants={"table": huge})
    with pytest.raises(ValueError, match=r"at most 2,000,000,000 bytes.* 2,000,000,004;"):
        to_onnx(program, {"dtype": "float32"})
    assert not list(tmp_path.iterdir())


def test_a_file_that_grew_too_large_is_told() -> None:
    """What the package says of it is no answer for a person."""
    from google.protobuf.message import EncodeError

    def fail() -> None:
        raise EncodeError("Failed to serialize proto")

    with pytest.raises(ValueError, match=r"2,000,000,000 bytes, and this .* format='torch'"):
        serialized(SimpleNamespace(SerializeToString=fail))
