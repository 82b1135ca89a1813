"""`foveal predict RUN IMAGE...`: what a run's model sees in pictures."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from foveal.cli.parsing import parse

if TYPE_CHECKING:
    from foveal.recipes.images.look import Prediction


@dataclass(kw_only=True)
class Options:
    """Name the likeliest classes of pictures.

    Attributes:
        run: the run's folder, or "latest".
        images: files of pictures.
        top: classes to name for each.
        beside: a file of foveal export: name what it sees too, and how much its logits differ.
        device: auto, cpu, cuda, cuda:1 or mps.
        json: print the result as JSON, and nothing else.
    """

    run: Annotated[str, tyro.conf.Positional]
    images: Annotated[tuple[str, ...], tyro.conf.Positional]
    top: int = 5
    beside: Annotated[str | None, tyro.conf.arg(name="with")] = None
    device: str = "auto"
    json: bool = False


def main(arguments: list[str]) -> int:
    """Print a table for each picture; 2 if none could be read."""
    options = parse(Options, arguments, "predict")
    if not options.images:
        raise ValueError("name at least one picture: foveal predict RUN IMAGE ...")
    from foveal.recipes.images.look import predict

    found = predict(options.run, options.images, options.top, options.device, options.beside)
    if options.json:
        print(json.dumps([_plain(one) for one in found], indent=2))
        return 0 if any(one.ranking for one in found) else 2
    for one in found:
        if one.problem:
            print(f"foveal: {one.problem}", file=sys.stderr)
            continue
        print("\n".join([one.path, *_lines(one)]))
    return 0 if any(one.ranking for one in found) else 2


def _lines(one: Prediction) -> list[str]:
    """What is said of a picture; with a program, what that says beside it."""
    if one.exported is None:
        return [f"  {share:6.1%}  {name}" for name, share in one.ranking]
    shares = one.exported.shares
    lines = ["   model  exported"]
    lines += [f"  {share:6.1%}    {shares[name]:6.1%}  {name}" for name, share in one.ranking]
    return [*lines, *(f"  {line}" for line in str(one.exported).splitlines())]


def _plain(one: Prediction) -> dict[str, Any]:
    ranking = [{"class": name, "probability": share} for name, share in one.ranking]
    plain = {"path": one.path, "ranking": ranking, "problem": one.problem or None}
    return plain if one.exported is None else {**plain, "exported": one.exported.to_dict()}
