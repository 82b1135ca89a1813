"""`foveal evaluate RUN`: how good a run is on data it has not seen, beside what else there is."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from foveal.cli.parsing import parse

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(kw_only=True)
class Options:
    """Score a run on its held-out bytes, pictures, sequences or captions, in float32.

    Of many data a sample is scored, spread evenly over them, and named in the result: 4,000,000
    bytes, 10,000 passes over pictures, 10,000 sequences or 2,000 captioned pictures.

    Attributes:
        run: the run's folder, or "latest".
        data: score other data: their test or validation part if they have one, else all of them.
            A file, a folder or a glob; for pictures a folder or an archive.
        full: score all of the data, however long it takes.
        context: bytes per window; the training context unless given.
        stride: bytes newly scored by each window; smaller than the context gives every byte more
            history, and a better score at a higher cost. Equal to the context unless given.
        max_bytes: score a sample of so many bytes; 4,000,000 unless given.
        device: auto, cpu, cuda, cuda:1 or mps.
        json: print the result as JSON, and nothing else.
    """

    run: Annotated[str, tyro.conf.Positional]
    data: str | None = None
    full: bool = False
    context: int | None = None
    stride: int | None = None
    max_bytes: int | None = None
    device: str = "auto"
    json: bool = False


def main(arguments: list[str]) -> int:
    """Score a run and print a small table, or JSON."""
    options = parse(Options, arguments, "evaluate")
    if options.full and options.max_bytes is not None:
        raise ValueError("--full and --max-bytes exclude each other; leave one out.")
    if options.max_bytes is not None and options.max_bytes < 2:
        raise ValueError(f"--max-bytes must be at least 2, got {options.max_bytes}.")
    from foveal.recipes.runs import open_run
    from foveal.recipes.score import evaluate
    from foveal.training.machine import keep_freed_memory
    from foveal.training.processes import StoppedElsewhereError

    keep_freed_memory()
    run = open_run(options.run)
    given = {name: value for name, value in vars(options).items() if name not in ("run", "json")}
    accelerator = _fellows(options.device)
    try:
        score = evaluate(run, accelerator=accelerator, **given).to_dict()
    except StoppedElsewhereError:  # the process that failed says why
        return 2
    if accelerator is not None and not accelerator.is_main_process:
        return 0
    if options.json:
        print(json.dumps(_plain(score), indent=2))
    else:
        print("\n".join(run.kind.table(score, run.folder)))
    return 0


def _fellows(device: str) -> Accelerator | None:
    """The processes that a launcher has started to score together, or None."""
    from foveal.training.processes import launched

    if launched() == 1 or "RANK" not in os.environ:
        return None
    from foveal.training.config import TrainingConfig
    from foveal.training.trainer import make_accelerator

    return make_accelerator(TrainingConfig(device=device))


def _plain(value: Any) -> Any:
    """As JSON can hold it: what is no number is null."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
