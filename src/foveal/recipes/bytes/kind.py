"""The task of byte language models: next-byte loss, bits per byte, continuations."""

from __future__ import annotations

import lzma
import platform
import zlib
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveal.common.checks import check_sizes
from foveal.data.corpus import Corpus, sample_bytes
from foveal.data.hub_streams import StreamedTexts, StreamedWindows, streamed_pair
from foveal.data.image_hub import STREAM
from foveal.data.sources import corpus_to_score, open_corpus
from foveal.data.text import (
    IGNORED,
    TextConfig,
    TextWindows,
    check_context,
    decode,
    encode,
    scoring_windows,
)
from foveal.draw.curves import draw_bars
from foveal.draw.report import Section
from foveal.recipes.bytes.writing import Continuation, keep_first_samples, write_on
from foveal.recipes.kind import KindTask, Run
from foveal.recipes.language import NextToken, losses_of, sum_of_bits
from foveal.recipes.settings import RunConfig
from foveal.recipes.sharing import Parts
from foveal.training.dealing import totals_in_shares
from foveal.training.progress import showing, tracked
from foveal.training.task import Totals

_QUICK_WINDOWS = 96
_MOST_EVALUATED = 4_000_000
_SCORING_TOKENS = {"cpu": 1 << 11}
"""Tokens that are scored at once, by type of device: what stays in a processor's caches."""
_MANY_TOKENS = 1 << 15
_CHUNK = 1 << 18


class Bytes(NextToken):
    """Language models of bytes, scored beside compressors."""

    data = TextConfig
    score = "bits_per_byte"
    things = trained = "bytes"
    limit = 1_000_000  # when a training ends; `foveal evaluate` scores more
    must, seen = "a language model", "the bytes it predicts"
    forms: ClassVar = {"bits_per_byte": ("bits per byte, held out", "{:.3f}")}
    options = ("context", "stride", "max_bytes")

    def open(self, data: TextConfig) -> tuple[Corpus | StreamedTexts, Corpus]:
        if data.path.startswith(STREAM):
            return self._open_stream(data)
        train, held_out = open_corpus(data.path, data.valid, data.column)
        check_context(train, data.context)
        if len(held_out) < 2:
            raise ValueError(
                f"{held_out.name} has {len(held_out)} bytes, but a score needs at least 2; use a "
                "longer text."
            )
        return train, held_out

    def _open_stream(self, data: TextConfig) -> tuple[StreamedTexts, Corpus]:
        """Texts that come by a stream, and those that are scored."""
        if data.pack:
            raise ValueError(f"data.pack must be false for {data.path!r}; use hf:NAME instead.")
        valid = corpus_to_score(data.path, "", data.column, data.valid) if data.valid else None
        return streamed_pair(data.path, valid, data.column)

    def source(self, task: KindTask) -> TextWindows | StreamedWindows:
        if isinstance(task.train, StreamedTexts):
            return task.train.windows(task.config.data.context)
        return TextWindows(task.train, task.config.data.context, task.config.data.pack)

    def units(self, task: KindTask) -> int:
        return int(task.config.data.context)

    def max_seq_len(self, data: TextConfig) -> int:
        return data.context

    def build(self, config: RunConfig, **assets: Any) -> nn.Module:
        model = super().build(config, **assets)
        if config.data.pack and not getattr(model, "packs", False):
            raise ValueError(
                "data.pack needs a model that takes documents side by side, a transformer, got "
                f"{config.model.get('name')!r}; set data.pack = false."
            )
        return model

    def evaluate(self, task: KindTask, *, quick: bool, rank: int, world_size: int) -> Totals:
        """Bits per byte over 96 windows or a megabyte of them, spread evenly over the data."""
        context = task.config.data.context
        limit = max(1, self.limit // context)
        limit = min(limit, _QUICK_WINDOWS) if quick else limit
        return score_windows(
            task.model,
            task.held_out,
            context,
            limit=limit,
            rank=rank,
            world=world_size,
            pack=task.config.data.pack,
            parts=task.parts,
            chunk=task.config.training.loss_chunk,
        )

    def facts(self, task: KindTask) -> dict[str, str]:
        return {"context": f"{task.config.data.context} bytes"}

    def finish(self, task: KindTask, folder: Path) -> None:
        keep_first_samples(folder, task.model.eval(), task.config)

    def to_score(self, run: Run, data: str | None, full: bool, **options: Any) -> Corpus:
        """All bytes, or pieces spread over them; `max_bytes=0` is all of them too."""
        _windows(run, **options)
        most = 0 if full else options.get("max_bytes", _MOST_EVALUATED)
        if most < 0 or most == 1:
            raise ValueError(f"max_bytes must be at least 2, or 0 for all, got {most}.")
        own = run.config.data
        return sample_bytes(corpus_to_score(own.path, own.valid, own.column, data), most)

    def measure(self, run: Run, model: Any, found: Corpus, **options: Any) -> dict[str, Any]:
        """Bits per byte, every byte but the first scored once.

        Args:
            options: context, bytes per window, as in training unless told otherwise; stride, bytes
                newly scored by each window, the context unless told otherwise.
        """
        context, stride = _windows(run, **options)
        longest = getattr(model, "max_seq_len", None)
        if longest is not None and context > longest:
            raise ValueError(
                f"context must be at most {longest}, the most that the model of this run looks "
                f"at, got {context=}."
            )
        options = {"stride": stride, "pack": run.config.data.pack}
        options["chunk"] = run.config.training.loss_chunk

        def share(rank: int, world: int) -> tuple[float, float]:
            more: Any = {**options, "rank": rank, "world": world}
            return score_windows(model, found, context, **more)["bits_per_byte"]

        bits, count = totals_in_shares(share)
        return {
            "bits_per_byte": bits / count,
            "bytes": len(found),
            "context": context,
            "stride": stride,
        }

    def beside(self, found: Corpus) -> dict[str, float]:
        """Bits per byte that `gzip -9` and `xz -9e` need for the same bytes."""
        packers: dict[str, Any] = {
            "gzip": zlib.compressobj(9, wbits=31),
            "xz": lzma.LZMACompressor(preset=9 | lzma.PRESET_EXTREME),
        }
        sizes = dict.fromkeys(packers, 0)
        with showing("compressing"):
            for start in tracked(range(0, len(found), _CHUNK)):
                piece = found.read(start, min(_CHUNK, len(found) - start)).tobytes()
                for name, packer in packers.items():
                    sizes[name] += len(packer.compress(piece))
        for name, packer in packers.items():
            sizes[name] += len(packer.flush())
        return {name: 8 * size / len(found) for name, size in sizes.items()}

    def table(self, score: Mapping[str, Any], folder: Path) -> list[str]:
        """What was scored and how, then the model and the compressors."""
        return [
            f"{score['data']} (checksum {score['checksum']}; scored under Python "
            f"{platform.python_version()})",
            f"{score['bytes']:,} bytes, {_describe_windows(score)}, {score['seconds']:.0f} s",
            "",
            "bits per byte",
            f"  this model ({score['checkpoint']})  {score['bits_per_byte']:.3f}",
            f"  gzip -9                     {score['gzip']:.3f}",
            f"  xz -9e                      {score['xz']:.3f}",
        ]

    def score_section(self, pictures: Path, score: Mapping[str, Any]) -> Section:
        """The score beside the compressors."""
        names = {"this model": "bits_per_byte", "gzip -9": "gzip", "xz -9e": "xz"}
        values = {label: score[name] for label, name in names.items()}
        rows = {
            "bits per byte": ", ".join(f"{name} {value:.3f}" for name, value in values.items()),
            "scored": f"{score['bytes']:,} bytes, each but the first once",
            "data": f"{score['data']}, checksum {score['checksum']}",
            "windows": _describe_windows(score),
            "checkpoint": score["checkpoint"],
        }
        path = draw_bars(values, pictures / "scores.png", xlabel="bits per byte (less is better)")
        drawn = [("The same bytes, three ways", path)]
        return Section("Held-out score", pictures=drawn, rows=rows)

    def generate(
        self, run: Run, prompt: str, length: int, *, device: str, **sampling: Any
    ) -> Continuation:
        """Go on with a text, and keep that for the report."""
        return write_on(run, prompt, length, device=device, **sampling)

    def start(self, run: Run, prompt: str) -> Tensor:
        return torch.tensor([encode(prompt) or encode("\n")])

    def told(self, tokens: Tensor) -> str:
        return decode(tokens)


KIND = Bytes()


def _windows(run: Run, **options: int) -> tuple[int, int]:
    context = options.get("context", run.config.data.context)
    stride = options.get("stride", context)
    check_sizes(context=context, stride=stride)
    return context, stride


def _describe_windows(score: Mapping[str, Any]) -> str:
    """How bytes were scored, in words; a score means little without it."""
    context, stride = score["context"], score["stride"]
    if stride == context:
        return f"{context} bytes, each window from a cold start"
    return (
        f"{context} bytes, sliding by {stride}: each byte sees {context - stride} or more before"
    )


@torch.no_grad()
def score_windows(
    model: nn.Module,
    corpus: Corpus,
    context: int,
    *,
    stride: int | None = None,
    limit: int | None = None,
    rank: int = 0,
    world: int = 1,
    pack: bool = False,
    parts: Parts | None = None,
    chunk: int = 0,
) -> Totals:
    """Sum of bits and number of scored bytes, for every `world`-th batch of windows.

    Args:
        parts: of windows, where several processes share each: this one's part is scored.
        chunk: see `TrainingConfig.loss_chunk`.
        Others as in `scoring_windows`.
    """
    device = next(model.parameters()).device
    windows = scoring_windows(corpus, context, stride=stride, limit=limit, pack=pack)
    bits, count = 0.0, 0
    total = limit or -(-len(corpus) // (stride or context))
    size = max(1, _SCORING_TOKENS.get(device.type, _MANY_TOKENS) // context)
    batches = iter(lambda: list(islice(windows, size)), [])
    for number, batch in enumerate(tracked(batches, -(-total // size))):
        if number % world == rank:
            least = 1 if parts is None else parts.size  # each process has a token
            inputs, targets, *places = (part.to(device) for part in _padded(batch, least))
            if parts is not None:
                inputs, targets = parts.take(inputs), parts.take(targets)
            packed = {"position_ids": places[0]} if places else {}
            bits += sum_of_bits(losses_of(model, inputs, targets, chunk, **packed))
            count += int((targets != IGNORED).sum())
    return {"bits_per_byte": (bits, count)}


def _padded(batch: list[tuple[Tensor, ...]], least: int = 1) -> tuple[Tensor, ...]:
    """Stack windows; a causal model does not see the padding to the right of a short one."""
    length = max(least, *(len(inputs) for inputs, *_ in batch))
    inputs = torch.stack([F.pad(a, (0, length - len(a))) for a, *_ in batch])
    targets = torch.stack([F.pad(b, (0, length - len(b)), value=IGNORED) for _, b, *_ in batch])
    places = [p for _, _, *rest in batch for p in rest]
    if not places:
        return inputs, targets
    later = torch.arange(1, length + 1)  # padding goes on in the last document
    return inputs, targets, torch.stack([_counted_on(p, later[: length - len(p)]) for p in places])


def _counted_on(places: Tensor, later: Tensor) -> Tensor:
    return torch.cat([places, places[-1] + later])
