"""How good a run is: what is measured, on what, and what is kept of it."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.common import html
from foveal.common.inputs import reading, reason
from foveal.recipes.kind import Run
from foveal.recipes.report import EVALUATION, write_run_report
from foveal.recipes.runs import open_model, open_run, write_json
from foveal.training.dealing import sharing
from foveal.training.processes import from_first, share_tensors, together
from foveal.training.progress import showing, waiting

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Score:
    """The scores of a run, and what they must be read beside; `score["accuracy"]` is one.

    Attributes:
        values: by name; see `measure` and `beside` of the run's `Kind`.
        data, checksum: what was scored.
        seconds: time that the scoring took.
        checkpoint: the weights that were scored.
    """

    values: dict[str, Any]
    data: str
    checksum: str
    seconds: float
    checkpoint: str

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        about = f"{self.data}, checksum {self.checksum}; {self.checkpoint}, {self.seconds:.0f} s"
        plain = {name: x for name, x in self.values.items() if isinstance(x, int | float | str)}
        return html.facts(plain, title="score", note=about)

    def to_dict(self) -> dict[str, Any]:
        """As evaluation.json holds it."""
        about = {name: value for name, value in vars(self).items() if name != "values"}
        return self.values | about


def evaluate(
    run: Run | Path | str,
    *,
    data: str | None = None,
    full: bool = False,
    device: str = "auto",
    accelerator: Accelerator | None = None,
    **options: Any,
) -> Score:
    """Score a run on held-out data, in float32, and keep the result in its folder.

    Args:
        data: score other data than the run's own: their test or validation part, or all of them.
        full: score everything, and not a sample.
        device: see `foveal.training.machine.pick_device`.
        accelerator: processes that share the work; all of them call this, and get the score.
        options: what the task alone knows; of text context, stride and max_bytes.

    Raises:
        ValueError: no such run or data, or options that mean nothing for its task.
        FloatingPointError: the model says nothing that is a number.
    """
    if accelerator is not None and accelerator.num_processes > 1:
        place = accelerator.device
        device = str(place) if place.type != "cpu" else "cpu"
    first = partial(from_first, accelerator) if accelerator is not None else _alone
    found_run = first(lambda: open_run(run))
    with sharing(accelerator):
        score = _score(found_run, data, full, device, accelerator, options)
    first(lambda: _keep(found_run.folder, score.to_dict()))
    return score


def _alone(action: Callable[[], Any]) -> Any:
    return action()


def _score(
    run: Run,
    data: str | None,
    full: bool,
    device: str,
    accelerator: Accelerator | None,
    options: dict[str, Any],
) -> Score:
    """Score a run; processes that share the work do so with the weights of the first."""
    kind, options = run.kind, {name: value for name, value in options.items() if value is not None}

    def read() -> tuple[Any, Any, Any]:
        _check_options(run, options)
        opened = open_model(run, device)
        named = run.config.data.path if data is None else data
        with waiting("reading"), reading(f"data={named!r}"):
            return *opened, kind.to_score(run, data, full, **options)

    # what one process cannot open stops all of them
    found: Any
    model, checkpoint, found = read() if accelerator is None else together(accelerator, read)
    if accelerator is not None:  # a training may have saved another one meanwhile
        share_tensors(accelerator, model.state_dict().values())
    started = time.perf_counter()
    with showing("scoring"):
        values = kind.measure(run, model, found, **options)
    seconds = time.perf_counter() - started
    values |= kind.beside(found)
    return Score(values, found.name, found.checksum(), seconds, checkpoint)


def _check_options(run: Run, options: dict[str, Any]) -> None:
    """Raise ValueError for an option that means nothing for the run's task."""
    for name in options.keys() - set(run.kind.options):
        raise ValueError(
            f"--{name.replace('_', '-')} is for runs on text, but this one trains "
            f"{run.config.task!r}; leave it out."
        )


def _keep(folder: Path, result: dict[str, Any]) -> None:
    """Write a score into the run's folder, and its report; a folder that is read-only stays."""
    for name, value in result.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise FloatingPointError(
                f"the score {name} of {folder} is {value}: the model's outputs are no numbers."
            )
    try:
        write_json(folder / EVALUATION, result)
        write_run_report(folder)
    except OSError as error:
        warnings.warn(f"the score was not kept in {folder}: {reason(error)}", stacklevel=2)
