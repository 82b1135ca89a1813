"""The model of a run as a program that runs without foveal, compared before it is written."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foveal.common import html
from foveal.common.files import expanded, read_json
from foveal.common.inputs import reading, require_place
from foveal.common.words import in_bytes, suggest
from foveal.export import save
from foveal.export.files import FORMATS, STAGES
from foveal.export.told import facts, rows
from foveal.models import load_model
from foveal.models.base import Model
from foveal.models.image import ImageModel
from foveal.recipes.runs import CONFIG, open_model, open_run
from foveal.training.progress import waiting


@dataclass(frozen=True)
class Written:
    """A program that was written.

    Attributes:
        path, format, bytes: of the file.
        source: the checkpoint or folder that the weights are from.
        about: what the file says of itself, see `foveal.export.describe`.
    """

    path: str
    format: str
    bytes: int
    source: str
    about: dict[str, Any]

    @property
    def deviation(self) -> float:
        """The largest one from the model that was seen before it was written; relative to numbers
        above 1."""
        return float(self.about["deviation"])

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    def __str__(self) -> str:
        told = rows(self.about)
        width = max(map(len, told))
        lines = [f"{self.path}  {self.bytes:,} bytes, of {self.source}"]
        return "\n".join([*lines, *(f"{name:<{width}}  {words}" for name, words in told.items())])

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        file = {"format": self.format, "size": in_bytes(self.bytes), "from": self.source}
        return html.facts({**file, **facts(self.about)}, title=self.path)


def export_run(run: str, kind: str | None = None, out: str | None = None, **sizes: Any) -> Written:
    """Write a run's model, or a saved one, as a program; compared with it first.

    Args:
        run: the run's folder, "latest", or a folder of `save_pretrained`.
        kind: "torch" or "onnx"; what the ending of `out` says unless given, else "torch".
        out: the file; in the folder unless given.
        sizes: batch, length, size, mask; see `foveal.export.inputs_of`. Pictures are of the size
            that the run scales them to unless given.

    Raises:
        ValueError: there is no such model, or it cannot be exported or with such sizes, or what
            came out differs from it. Nothing has been written then.
        OSError: nothing can be written there.
        ModuleNotFoundError: a package of the extra onnx is missing.
    """
    kind = _kind(kind, out)
    place = None if out is None else require_place(out, "out")
    model, folder, source, usual = _open(run)
    path = place or folder / f"model{FORMATS[kind]}"
    with waiting("exporting", STAGES) as tell, reading(f"the model of {source}"):
        about = save(model, path, kind, tell=tell, **{**usual, **sizes})
    return Written(str(path), kind, path.stat().st_size, source, about)


def _kind(kind: str | None, out: str | None) -> str:
    """The format, of which the ending of `out` is."""
    ending = "" if out is None else Path(out).suffix
    told = {value: key for key, value in FORMATS.items()}.get(ending)
    if out is not None and told is None:
        raise ValueError(f"out must end in .pt2 or .onnx, got out={out!r}.")
    if kind not in (None, *FORMATS):
        hint = suggest(kind, FORMATS)
        raise ValueError(f"format must be torch or onnx, got format={kind!r}; {hint}")
    if kind is not None and told not in (None, kind):
        raise ValueError(
            f"out={out!r} ends as a file of format {told} does; name it {FORMATS[kind]}, or leave "
            "out the format."
        )
    return kind or told or "torch"


def _open(run: str) -> tuple[Any, Path, str, dict[str, Any]]:
    """A model on the CPU in evaluation mode, the folder that it is from, what that is called, and
    the sizes that it is used with.

    Raises:
        ValueError: there is none.
    """
    folder = expanded(run)
    if run != "latest" and _is_saved(folder):
        return load_model(folder), folder, run, {}
    opened = open_run(run)
    model, checkpoint = open_model(opened, "cpu")
    if not isinstance(model, Model):
        raise ValueError(
            f"{type(model).__name__} must be a model of foveal to be exported; torch.export takes "
            "others."
        )
    usual = {"size": opened.config.data.size} if isinstance(model, ImageModel) else {}
    return model, opened.folder, f"{opened.folder}, {checkpoint}", usual


def _is_saved(folder: Path) -> bool:
    """Whether `save_pretrained` has written the folder."""
    if not (folder / CONFIG).is_file():
        return False
    with reading(str(folder / CONFIG)):
        found = read_json(folder / CONFIG)
        return isinstance(found, dict) and "family" in found
