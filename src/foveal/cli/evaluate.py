"""`foveal evaluate RUN`: how good a run is on data it has not seen, beside what else there is."""

from __future__ import annotations

import json
import math
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from foveal.cli.parsing import parse

if TYPE_CHECKING:
    from foveal.recipes.caption_runs import CaptionEvaluation
    from foveal.recipes.images import ImageEvaluation
    from foveal.recipes.pixels import PixelEvaluation
    from foveal.recipes.run import Evaluation


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
    from foveal.recipes.runs import find_run, load_config
    from foveal.training.machine import keep_freed_memory

    keep_freed_memory()
    folder = find_run(options.run)
    task = load_config(folder).task
    _check(options, task)
    result, table = _score(options, folder, task)
    if options.json:
        print(json.dumps(_plain(asdict(result)), indent=2))
    else:
        print(table(result, folder))
    return 0


def _check(options: Options, task: str) -> None:
    """Raise ValueError for options that mean nothing for this run, or together."""
    for name in ("context", "stride", "max_bytes"):
        if task != "bytes" and getattr(options, name) is not None:
            raise ValueError(
                f"--{name.replace('_', '-')} is for runs on text, but this one trains {task!r}; "
                "leave it out."
            )
    if options.full and options.max_bytes is not None:
        raise ValueError("--full and --max-bytes exclude each other; leave one out.")
    if options.max_bytes is not None and options.max_bytes < 2:
        raise ValueError(f"--max-bytes must be at least 2, got {options.max_bytes}.")


def _score(options: Options, folder: Path, task: str) -> tuple[Any, Any]:
    """The result of a run of a task, and what makes a table of it."""
    from foveal.recipes.tasks import CAPTION_TASKS, CLASSIFIERS

    common: dict[str, Any] = {"data": options.data, "device": options.device}
    if task == "bytes":
        from foveal.recipes.run import MOST_BYTES, evaluate

        most = MOST_BYTES if options.max_bytes is None else options.max_bytes
        return (
            evaluate(
                folder,
                context=options.context,
                stride=options.stride,
                max_bytes=0 if options.full else most,
                **common,
            ),
            _table,
        )
    common["full"] = options.full
    if task in CAPTION_TASKS:
        from foveal.recipes.caption_runs import evaluate_captions

        return evaluate_captions(folder, **common), _caption_table
    if task in CLASSIFIERS:
        from foveal.recipes.image_runs import evaluate_images

        return evaluate_images(folder, **common), _image_table
    from foveal.recipes.pixel_runs import evaluate_pixels

    return evaluate_pixels(folder, **common), _pixel_table


def _plain(value: Any) -> Any:
    """As JSON can hold it: what is no number is null."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _pixel_table(result: PixelEvaluation, folder: Path) -> str:
    return (
        f"{result.data} (checksum {result.checksum}), {result.images:,} pictures\n"
        f"bits per dimension  {result.bits_per_dim:.3f}  ({result.checkpoint})"
    )


def _caption_table(result: CaptionEvaluation, folder: Path) -> str:
    from foveal.recipes.caption_report import caption_rows

    rows = caption_rows(result.scores)
    width = max(map(len, rows))
    return "\n".join(
        [
            f"{result.data} (checksum {result.checksum})",
            f"{result.pictures:,} pictures{_skipped(result.skipped)}, "
            f"{result.seconds:.0f} s, {result.checkpoint}",
            "",
            *(f"{label:<{width}}  {value}" for label, value in rows.items()),
        ]
    )


def _skipped(count: int) -> str:
    return f" ({count:,} left out)" if count else ""


def _image_table(result: ImageEvaluation, folder: Path) -> str:
    from foveal.recipes.report import PICTURES

    width = max(len("class"), *map(len, result.classes))
    lines = [
        f"{result.data} (checksum {result.checksum})",
        f"{result.images:,} {result.unit}{_skipped(result.skipped)}, "
        f"{result.seconds:.0f} s, {result.checkpoint}",
        "",
        f"top-1 accuracy     {result.accuracy:.2%}",
        *([] if result.top5 is None else [f"top-5 accuracy     {result.top5:.2%}"]),
        f"balanced accuracy  {result.balanced_accuracy:.2%}",
        "",
        f"{'class':<{width}}  {result.unit:>9}  recall  precision",
    ]
    for name, count, recall, precision in result.per_class():
        shares = f"{_share(recall):>6}  {_share(precision):>9}"
        lines.append(f"{name:<{width}}  {count:>9,}  {shares}")
    picture = folder / PICTURES / "confusion.png"
    return "\n".join([*lines, *(["", f"confusion matrix  {picture}"] if picture.exists() else [])])


def _share(value: float) -> str:
    """A dash where there was nothing to be right about."""
    return "-" if math.isnan(value) else f"{value:.1%}"


def _table(result: Evaluation, folder: Path) -> str:
    from foveal.recipes.report import describe_windows

    lines = [
        f"{result.data} (checksum {result.checksum}; scored under Python "
        f"{platform.python_version()})",
        f"{result.bytes:,} bytes, {describe_windows(result.context, result.stride)}, "
        f"{result.seconds:.0f} s",
        "",
        "bits per byte",
        f"  this model ({result.checkpoint})  {result.bits_per_byte:.3f}",
        f"  gzip -9                     {result.gzip:.3f}",
        f"  xz -9e                      {result.xz:.3f}",
    ]
    return "\n".join(lines)
