"""What scoring a run has in common for every task: its model, a sample of the data, the result."""

from __future__ import annotations

import dataclasses
import lzma
import math
import warnings
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from foveal.common.inputs import reading, reason
from foveal.data.corpus import Corpus
from foveal.data.sampling import sample_name, spread
from foveal.recipes.config import RunConfig
from foveal.recipes.report import write_run_report
from foveal.recipes.result import EVALUATION
from foveal.recipes.runs import load_model, write_json
from foveal.training.machine import pick_device
from foveal.training.progress import tracked

MOST_BYTES = 4_000_000
"""What is scored at most, spread evenly over the data, unless all of it is asked for."""

_PIECES = 16
_CHUNK = 1 << 18


def open_model(folder: Path, config: RunConfig, device: str = "auto") -> tuple[Any, str]:
    """The model of a run in evaluation mode on a device, and the name of its checkpoint.

    Raises:
        ValueError: the run has no whole checkpoint, or one whose weights are no numbers; a device
            that is not there.
    """
    chosen = pick_device(device)
    with reading(f"the run {folder}"):
        model, checkpoint = load_model(folder, config)
        _check_finite(model, checkpoint)
        return model.to(chosen), checkpoint.name


def _check_finite(model: nn.Module, checkpoint: Path) -> None:
    for name, value in model.state_dict().items():
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(
                f"the weights of {checkpoint} are damaged: {name} holds NaN or infinity; use an "
                "earlier checkpoint, or train again with a lower learning rate."
            )


def sample(data: Any, most: int, unit: str) -> Any:
    """The data, or a sample of them that says so in its name; all of them where `most` is 0.

    Args:
        data: a set of examples with `name` and `subset(index, name)`.
    """
    if not most or len(data) <= most:
        return data
    chosen = spread(len(data), most)
    return data.subset(chosen, sample_name(data.name, most, len(data), unit))


def sample_bytes(corpus: Corpus, most: int) -> Corpus:
    """The bytes, or 16 pieces spread evenly over them, with the same end; 0 means all of them."""
    if not most or len(corpus) <= most:
        return corpus
    pieces = min(_PIECES, most)
    starts = torch.linspace(0, len(corpus) - most // pieces, pieces, dtype=torch.float64).long()
    spans = []
    for number, start in enumerate(starts.tolist()):
        size = most // pieces + (number < most % pieces)
        spans += _cut(corpus, min(start, len(corpus) - size), size)
    return Corpus(sample_name(corpus.name, most, len(corpus), "bytes"), spans)


def _cut(corpus: Corpus, start: int, size: int) -> list[Any]:
    """The spans of `size` bytes from `start`."""
    found, before = [], 0
    for span in corpus.spans:
        first, last = max(start - before, 0), min(start + size - before, len(span))
        if first < last:
            found.append(
                dataclasses.replace(span, start=span.start + first, stop=span.start + last)
            )
        before += len(span)
    return found


def keep_result(folder: Path, result: dict[str, Any]) -> None:
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


def compressed_bits(corpus: Corpus) -> dict[str, float]:
    """Bits per byte that `gzip -9` and `xz -9e` need for the same bytes."""
    packers: dict[str, Any] = {
        "gzip": zlib.compressobj(9, wbits=31),
        "xz": lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME),
    }
    sizes = dict.fromkeys(packers, 0)
    for start in tracked(range(0, len(corpus), _CHUNK)):
        piece = corpus.read(start, min(_CHUNK, len(corpus) - start)).tobytes()
        for name, packer in packers.items():
            sizes[name] += len(packer.compress(piece))
    for name, packer in packers.items():
        sizes[name] += len(packer.flush())
    return {name: 8 * size / len(corpus) for name, size in sizes.items()}
