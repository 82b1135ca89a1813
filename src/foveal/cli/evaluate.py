"""`foveal evaluate RUN`: bits per byte beside what compressors need for the same bytes."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Annotated

import tyro

from foveal.cli.options import parse
from foveal.recipes.report import describe_windows
from foveal.recipes.run import Evaluation, evaluate
from foveal.recipes.runs import find_run


@dataclass(kw_only=True)
class Options:
    """Score a run on its held-out bytes, in float32.

    Attributes:
        run: the run's folder, or "latest".
        data: score the held-out part of another file, folder or glob.
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
    result = evaluate(
        find_run(options.run),
        data=options.data,
        context=options.context,
        stride=options.stride,
        max_bytes=options.max_bytes,
    )
    print(_table(result))
    return 0


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
