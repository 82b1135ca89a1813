"""`foveal export RUN`: a run's model as a program that runs without foveal."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from foveal.cli.parsing import parse


@dataclass(kw_only=True)
class Options:
    """Write a run's model as one file that runs without foveal: a torch.export program, or ONNX.

    Attention becomes plain operators, near-linear where its pattern is. Before the file is
    written it is compared with the model, at sizes that it was not traced with.

    Attributes:
        run: the run's folder, "latest", or a folder that save_pretrained wrote.
        format: torch for torch.export.load, or onnx for onnxruntime (needs the extra onnx); what
            the ending of the file says unless given, else torch.
        out: the file, .pt2 or .onnx; model.pt2 or model.onnx in the run's folder unless given.
        batch: examples at a time: a number, or a range such as 1-64; any unless given.
        length: tokens, likewise: 2-4096; up to the model's longest unless given.
        size: pictures' height and width: 224, a range for both such as 64-512, or two of them
            with x between, 224x64-512; as the run's data, or as a saved model takes them, unless
            given.
        mask: of models that read tokens, let the program take a mask of real ones too.
        json: print what was written and how near it is as JSON, and nothing else.
    """

    run: Annotated[str, tyro.conf.Positional]
    format: str | None = None
    out: str | None = None
    batch: str | None = None
    length: str | None = None
    size: str | None = None
    mask: bool = False
    json: bool = False


def main(arguments: list[str]) -> int:
    """Print the file, its inputs, and how near it is to the model."""
    options = parse(Options, arguments, "export")
    sizes: dict[str, Any] = {
        name: _span(name, text)
        for name in ("batch", "length")
        if (text := getattr(options, name)) is not None
    }
    if options.size is not None:
        sizes["size"] = _sides(options.size)
    if options.mask:
        sizes["mask"] = True
    from foveal.recipes.exporting import export_run

    written = export_run(options.run, options.format, options.out, **sizes)
    print(json.dumps(written.to_dict(), indent=2) if options.json else written)
    return 0


def _span(name: str, text: str) -> int | tuple[int, int | None]:
    """A number, or a range: "8", "2-4096", "2-" without end."""
    found = re.fullmatch(r"(\d{1,18})(-(\d{1,18})?)?", text.strip(), re.ASCII)
    if not found:
        raise ValueError(f"--{name} must be a number or a range such as 2-4096, got {text!r}.")
    least, most = int(found[1]), None if found[3] is None else int(found[3])
    if most is not None and most < least:
        raise ValueError(f"--{name} must begin with the smaller number, got {text!r}.")
    return least if found[2] is None else (least, most)


def _sides(text: str) -> tuple[Any, Any]:
    """Height and width: one value for both, or two with an x between."""
    sides = [_span("size", one) for one in text.lower().split("x")]
    if len(sides) > 2:
        raise ValueError(f"--size must be height x width, such as 224x320, got {text!r}.")
    return sides[0], sides[-1]
