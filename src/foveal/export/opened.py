"""A program that somebody exported, whatever its format: called like the model that it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from foveal.common import html
from foveal.common.inputs import require_file
from foveal.export.files import FORMATS, load
from foveal.export.onnx import OnnxProgram
from foveal.export.told import facts, in_words, rows

_ZIP = b"PK\x03\x04"  # of torch's archives; ONNX files begin otherwise


class OpenedProgram:
    """A file of `foveal export`, ready to run on the CPU.

    Attributes:
        path: the file.
        about: what it says of itself; see `foveal.export.describe`.
    """

    def __init__(self, path: Path, run: Callable[..., Any], about: Mapping[str, Any]) -> None:
        self.path, self.about, self._run = path, about, run
        self.inputs: list[dict[str, Any]] = about["inputs"]

    def __repr__(self) -> str:
        told = [f"{name}: {words}" for name, words in rows(self.about).items()]
        what = " ".join(str(self.about.get(key, "")) for key in ("dtype", "family")).strip()
        return "\n  ".join([f"OpenedProgram({str(self.path)!r}, {what}", *told]) + ")"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return html.facts(facts(self.about), title=str(self.path))

    def size(self, name: str) -> tuple[int, int | None]:
        """The least and the most of a size, by its name; the most is None without end.

        Raises:
            ValueError: the program has no such size.
        """
        for one in self.inputs:
            for own, size in zip(one["sizes"], one["shape"], strict=True):
                if own == name:
                    least, most = (size, size) if isinstance(size, int) else size
                    return least, most
        raise ValueError(f"{str(self.path)!r} takes nothing that has a {name}.")

    def __call__(self, *inputs: Tensor) -> Any:
        """What the model made of such inputs: a tensor, or several.

        Raises:
            ValueError: other inputs, or sizes that the program was not exported for.
        """
        if len(inputs) != len(self.inputs):
            names = ", ".join(one["name"] for one in self.inputs)
            raise ValueError(
                f"{str(self.path)!r} takes {len(self.inputs)} inputs ({names}), got {len(inputs)}."
            )
        for one, x in zip(self.inputs, inputs, strict=True):
            self._check(one, x)
        return self._run(*(x.detach().cpu() for x in inputs))

    def _check(self, one: Mapping[str, Any], x: Tensor) -> None:
        if x.ndim != len(one["sizes"]) or str(x.dtype) != f"torch.{one['dtype']}":
            raise ValueError(
                f"{one['name']} must be ({', '.join(one['sizes'])}) of {one['dtype']} for "
                f"{str(self.path)!r}, got shape {tuple(x.shape)} of {x.dtype}."
            )
        for name, given in zip(one["sizes"], x.shape, strict=True):
            least, most = self.size(name)
            if given < least or (most is not None and given > most):
                raise ValueError(
                    f"{one['name']} has {name} {given}, but {str(self.path)!r} was exported for "
                    f"{in_words(least, most)}; export it again, with --"
                    f"{'size' if name in ('height', 'width') else name}."
                )


def open_program(
    path: str | Path, check: Callable[[Mapping[str, Any]], object] | None = None
) -> OpenedProgram:
    """A file that `foveal export` wrote.

    A .pt2 of a stranger may run anything (see torch.export.load), an ONNX file does not.

    Args:
        check: see `foveal.export.load`.

    Raises:
        ModuleNotFoundError: it is ONNX, and onnxruntime is missing.
        ValueError: there is no such file, or it is damaged or by somebody else.
    """
    path = require_file(path, "an exported program")

    def check_about(about: Any) -> None:
        if not _is_description(about):
            raise ValueError(
                f"{str(path)!r} has no note of what it takes, so foveal export did not write it; "
                "name a file that it wrote."
            )
        if check is not None:
            check(about)

    with path.open("rb") as file:
        is_torch = file.read(len(_ZIP)) == _ZIP or path.suffix.lower() == FORMATS["torch"]
    if is_torch:
        program, about = load(path, check_about)
        return OpenedProgram(path, program.module(), about)
    found = OnnxProgram(path)
    check_about(found.about)
    return OpenedProgram(path, found, found.about)


def _is_description(about: Any) -> bool:
    """Whether it has what we read of it, in the form in which `describe` says it."""
    inputs = about.get("inputs") if isinstance(about, Mapping) else None
    return isinstance(inputs, list) and bool(inputs) and all(map(_is_input, inputs))


def _is_input(one: Any) -> bool:
    if not isinstance(one, dict):
        return False
    if not isinstance(one.get("tokens"), int | None):
        return False
    if not all(isinstance(one.get(key), str) for key in ("name", "dtype")):
        return False
    names, shape = one.get("sizes"), one.get("shape")
    return (
        isinstance(names, list)
        and isinstance(shape, list)
        and len(names) == len(shape)
        and all(isinstance(name, str) for name in names)
        and all(map(_is_size, shape))
    )


def _is_size(size: Any) -> bool:
    if isinstance(size, list):
        return len(size) == 2 and isinstance(size[0], int) and isinstance(size[1], int | None)
    return isinstance(size, int)
