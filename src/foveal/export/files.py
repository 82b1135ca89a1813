"""Programs as files: written in one step, with what they are inside."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from torch import nn
from torch.export import ExportedProgram

from foveal.common.files import write_file
from foveal.common.inputs import require_place
from foveal.common.words import suggest
from foveal.export.check import check, check_tolerance, check_type
from foveal.export.inputs import inputs_of
from foveal.export.onnx import OnnxProgram, need_onnx, quiet, serialized, to_onnx, with_note
from foveal.export.program import program as trace
from foveal.export.shapes import Shape, inputs_in, sizes_in
from foveal.version import __version__

FORMATS = {"torch": ".pt2", "onnx": ".onnx"}
"""Of programs, and how their files end."""
DESCRIPTION = "foveal.json"
TRACING, TRANSLATING, COMPARING, WRITING = STAGES = (
    "tracing", "translating to ONNX", "comparing", "writing",
)  # fmt: skip
"""What `save` does, in order."""


def save(
    model: Any,
    path: str | Path,
    format: str = "torch",
    *,
    program: ExportedProgram | None = None,
    tolerance: float | None = None,
    tell: Callable[[str], object] | None = None,
    **sizes: Any,
) -> dict[str, Any]:
    """Trace a model, compare the program with it, and write the program.

    Nothing is written unless they agree. `torch.export.load(path)` reads it without foveal.

    Args:
        path: of the file, such as "model.pt2".
        format: "torch", or "onnx" for onnxruntime (the extra onnx).
        program: from `foveal.export.program`, to be written in place of a new trace; it has its
            sizes already.
        tolerance: see `foveal.export.check`.
        tell: called with the name of each of `STAGES` as it begins; the first may take minutes.
        sizes: `batch`, `length`, `size` and `mask` of `foveal.export.program`.

    Returns:
        What stands in the file beside the program, see `describe`.

    Raises:
        ModuleNotFoundError: a package of the extra onnx is missing.
        ValueError: another format, sizes that do not fit, a model without such a program, or a
            program that differs from it.
        TypeError: it is no model of foveal, or `program` is none.
        FileNotFoundError, IsADirectoryError, OSError: there is no such folder, it is one itself,
            or nothing can be written there.
    """
    _check_before(model, format, program, tolerance, sizes)
    path = require_place(path, "path")
    tell = tell or (lambda stage: None)
    if program is None:
        tell(TRACING)
        program = trace(model, **sizes)
    about = describe(program, model)
    if format == "onnx":
        about, written = _as_onnx(program, model, about, tolerance, tell)
        tell(WRITING)
        write_file(path, lambda partial: partial.write_bytes(written))
        return about
    tell(COMPARING)
    about["deviation"] = check(program, model, tolerance=tolerance)
    tell(WRITING)
    extra = {DESCRIPTION: json.dumps(about, indent=1)}

    def write(partial: Path) -> None:
        with open(partial, "wb") as file, _Told(file) as told:
            torch.export.save(program, cast("IO[bytes]", told), extra_files=extra)

    write_file(path, write)
    return about


def _check_before(
    model: Any,
    format: str,
    program: ExportedProgram | None,
    tolerance: float | None,
    sizes: dict[str, Any],
) -> None:
    """Raise what is known to be wrong before the long work begins."""
    if format not in FORMATS:
        hint = suggest(format, FORMATS, "")
        raise ValueError(f"format must be {' or '.join(FORMATS)}, got {format=}. {hint}".strip())
    if program is not None and sizes:
        raise ValueError(
            f"program has its sizes already, got {', '.join(sizes)} as well; omit it."
        )
    if program is not None:
        check_type(program)
    check_tolerance(tolerance)
    if format == "onnx":
        is_module = isinstance(model, nn.Module)
        held = chain(model.parameters(), model.buffers()) if is_module else ()
        need_onnx(getattr(model, "dtype", None), held)


class _Told(io.RawIOBase):
    """A file that tells of a full disk when it is left, and not before.

    An archive of torch ends the whole process where a write raises.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return 0  # torch goes back to the beginning once all is written

    def write(self, data: Any) -> int:
        if self._error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self._error = error
        return memoryview(data).nbytes

    def __exit__(self, *about: Any) -> None:
        super().__exit__(*about)
        if self._error is not None:
            raise self._error


def _as_onnx(
    program: ExportedProgram,
    model: Any,
    about: dict[str, Any],
    tolerance: float | None,
    tell: Callable[[str], object],
) -> tuple[dict[str, Any], bytes]:
    """The description with the deviation that onnxruntime shows, and the file."""
    tell(TRANSLATING)
    graph = to_onnx(program, about)
    run = OnnxProgram(serialized(graph))
    tell(COMPARING)
    about = {**about, "deviation": check(program, model, tolerance=tolerance, run=run)}
    return about, with_note(graph, about)


def load(
    path: str | Path, check: Callable[[Any], object] | None = None
) -> tuple[ExportedProgram, dict[str, Any]]:
    """(the program, what `describe` said of it) of a file that `save` wrote.

    Only of somebody whom you trust: torch.export.load runs what a file tells it to.

    Args:
        check: called with what the file says of itself before the program is loaded, which may
            take many seconds; what it raises passes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or no program of foveal.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file.")
    with _blaming(path):
        about = _description_in(path)
    if check is not None:
        check(about)
    with _blaming(path), open(path, "rb") as file, quiet("torch.export"):
        return torch.export.load(file), about


@contextlib.contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Errors of torch, which are of any type, are the file's fault."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{path} is damaged or no program of foveal: {reason}") from error


def _description_in(path: Path) -> Any:
    """What an archive says of itself; raises what torch would not say, or only in a log."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(f"/{DESCRIPTION}")]
        if not names:
            raise ValueError(f"it has no {DESCRIPTION} inside")
        if broken := archive.testzip():
            raise ValueError(f"{broken} is not what was written")
        return json.loads(archive.read(names[0]))


def describe(program: ExportedProgram, model: Any) -> dict[str, Any]:
    """What a program is, in what JSON has.

    Returns:
        foveal and torch: versions; family and config: of the model; dtype; weights: their
        `digest`; inputs: of each the name, dtype, shape (a number, or [least, most]), what its
        sizes are called and, of tokens, the vocabulary's size; causal: whether the model can
        write.
    """
    spans = sizes_in(program)
    known = {one.name: one for one in inputs_of(model, mask=_has_mask(program))}

    def size(one: int | Shape) -> Any:
        return one if isinstance(one, int) else list(spans[one.name][:2])

    inputs = [
        {
            "name": one.name,
            "dtype": str(one.dtype).removeprefix("torch."),
            "shape": [size(part) for part in one.shape],
            "sizes": [name for name, _ in known[one.name].sizes],
            "tokens": known[one.name].high,
        }
        for one in inputs_in(program)
    ]
    return {
        "foveal": __version__,
        "torch": torch.__version__,
        "family": model.family,
        "config": model.settings.to_json(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "weights": digest(model),
        "causal": bool(getattr(model, "is_causal", False)),
        "inputs": inputs,
    }


def digest(model: Any) -> str:
    """A fingerprint of the weights: the same for the same numbers under the same names."""
    found = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(f"{name} {tuple(value.shape)} {value.dtype} ".encode())
        flat = value.detach().cpu().contiguous().flatten()
        found.update(flat.view(torch.uint8).numpy() if flat.numel() else b"")
    return found.hexdigest()[:16]


def _has_mask(program: ExportedProgram) -> bool:
    return any(one.dtype == torch.bool for one in inputs_in(program))
