"""`foveal evaluate RUN`: bits per byte beside what compressors need for the same bytes."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from foveal.cli.parsing import parse
from foveal.recipes.caption_report import caption_rows
from foveal.recipes.caption_runs import CaptionEvaluation, evaluate_captions
from foveal.recipes.image_runs import evaluate_images
from foveal.recipes.images import ImageEvaluation
from foveal.recipes.pixel_runs import evaluate_pixels
from foveal.recipes.report import PICTURES, describe_windows
from foveal.recipes.run import Evaluation, evaluate
from foveal.recipes.runs import find_run, load_config
from foveal.recipes.tasks import CAPTION_TASKS, CLASSIFIERS


@dataclass(kw_only=True)
class Options:
    """Score a run on its held-out bytes, pictures, sequences or captions, in float32.

    Attributes:
        run: the run's folder, or "latest".
        data: score the held-out part of other data: a file, folder or glob (pictures: a folder
            or archive).
        context: bytes per window; the training context unless given.
        stride: bytes newly scored by each window; smaller than the context gives every byte more
            history, and a better score at a higher cost. Equal to the context unless given.
        max_bytes: score only so many bytes.
    """

    run: Annotated[str, tyro.conf.Positional]
    data: str | None = None
    context: int | None = None
    stride: int | None = None
    max_bytes: int = 4_000_000


def main(arguments: list[str]) -> int:
    """Score a run and print a small table."""
    options = parse(Options, arguments, "evaluate")
    folder = find_run(options.run)
    task = load_config(folder).task
    if task in CAPTION_TASKS:
        print(_caption_table(evaluate_captions(folder, data=options.data)))
        return 0
    if task in CLASSIFIERS:
        print(_image_table(evaluate_images(folder, data=options.data), folder))
        return 0
    if task == "pixels":
        scored = evaluate_pixels(folder, data=options.data)
        print(f"{scored.data} (checksum {scored.checksum}), {scored.images:,} pictures")
        print(f"bits per dimension  {scored.bits_per_dim:.3f}  ({scored.checkpoint})")
        return 0
    result = evaluate(
        folder,
        data=options.data,
        context=options.context,
        stride=options.stride,
        max_bytes=options.max_bytes,
    )
    print(_table(result))
    return 0


def _caption_table(result: CaptionEvaluation) -> str:
    rows = caption_rows(result.scores)
    width = max(map(len, rows))
    return "\n".join(
        [
            f"{result.data} (checksum {result.checksum})",
            f"{result.pictures:,} pictures ({result.skipped} files skipped), "
            f"{result.seconds:.0f} s, {result.checkpoint}",
            "",
            *(f"{label:<{width}}  {value}" for label, value in rows.items()),
        ]
    )


def _image_table(result: ImageEvaluation, folder: Path) -> str:
    width = max(len("class"), *map(len, result.classes))
    lines = [
        f"{result.data} (checksum {result.checksum})",
        f"{result.images:,} {result.unit} ({result.skipped} of the data skipped), "
        f"{result.seconds:.0f} s, {result.checkpoint}",
        "",
        f"top-1 accuracy     {result.accuracy:.2%}",
        f"top-5 accuracy     {result.top5:.2%}",
        f"balanced accuracy  {result.balanced_accuracy:.2%}",
        "",
        f"{'class':<{width}}  {result.unit:>9}  recall  precision",
    ]
    for name, count, recall, precision in result.per_class():
        lines.append(f"{name:<{width}}  {count:>9,}  {recall:6.1%}  {precision:9.1%}")
    picture = folder / PICTURES / "confusion.png"
    return "\n".join([*lines, *(["", f"confusion matrix  {picture}"] if picture.exists() else [])])


def _table(result: Evaluation) -> str:
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
