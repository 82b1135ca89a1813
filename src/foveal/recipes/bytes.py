"""The task of byte language models: next-byte loss, bits per byte, continuations."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveal.data.sampling import sampled
from foveal.data.sources import Corpus
from foveal.data.text import (
    IGNORED,
    TextStream,
    decode,
    encode,
    open_text,
    scoring_windows,
)
from foveal.recipes.build import build_model
from foveal.recipes.config import RunConfig
from foveal.training.progress import tracked
from foveal.training.task import Totals

NUM_TOKENS = 256
_QUICK_WINDOWS = 96
_MOST_WRITTEN = 1_000_000
_MOST_BYTES = 1_000_000  # scored when a training ends; `foveal evaluate` scores more
_SCORING_TOKENS = {"cpu": 1 << 11}
"""Tokens that are scored at once, by type of device: what stays in a processor's caches."""
_MANY_TOKENS = 1 << 15


def build_byte_model(config: RunConfig) -> nn.Module:
    """The model of a configuration, its weights drawn from the run's seed."""
    torch.manual_seed(config.training.seed)
    model = build_model(
        config.model,
        f"recipe {config.recipe}",
        num_tokens=NUM_TOKENS,
        max_seq_len=config.data.context,
    )
    if not getattr(model, "is_causal", True):
        raise ValueError(
            "a language model must be causal, or it would see the bytes it predicts; use causal "
            f"patterns, got {config.model.get('pattern')!r}."
        )
    return model


def rebuild(config: RunConfig, folder: Path) -> nn.Module:
    """The model of a run, with fresh weights."""
    return build_byte_model(config)


class ByteTask:
    """Trains a language model on bytes. See `foveal.training.task.Task`."""

    unit = "tokens"
    score = "bits_per_byte"

    def __init__(self, config: RunConfig, rank: int = 0, world_size: int = 1) -> None:
        data, training = config.data, config.training
        self.train_corpus, self.valid_corpus = open_text(data)
        self.context = data.context
        self.stream = TextStream(
            self.train_corpus, data.context, training.batch_size, training.seed, rank, world_size
        )
        if len(self.valid_corpus) < 2:
            raise ValueError(
                f"{self.valid_corpus.name} has {len(self.valid_corpus)} bytes, but a score needs "
                "at least 2; use a longer text."
            )
        self.units_per_batch = training.batch_size * data.context
        self.model = build_byte_model(config)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy in nats of the next byte; inputs and targets (batch, context)."""
        inputs, targets = batch
        logits = model(inputs)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    def evaluate(self, *, quick: bool, rank: int = 0, world_size: int = 1) -> Totals:
        """Bits per byte over 96 windows or a megabyte of them, spread evenly over the data."""
        limit = _QUICK_WINDOWS if quick else max(1, _MOST_BYTES // self.context)
        return score_windows(
            self.model, self.valid_corpus, self.context, limit=limit, rank=rank, world=world_size
        )

    def facts(self) -> dict[str, str]:
        """What a report should say about the data and the model."""
        parameters = sum(p.numel() for p in self.model.parameters())
        return {
            "parameters": f"{parameters:,}",
            "training data": f"{self.train_corpus.name}: {len(self.train_corpus):,} bytes, "
            f"checksum {self.train_corpus.checksum()}",
            "held-out data": f"{self.valid_corpus.name}: {len(self.valid_corpus):,} bytes, "
            f"checksum {self.valid_corpus.checksum()}",
            "context": f"{self.context} bytes",
            **sampled(len(self.valid_corpus), _MOST_BYTES, "bytes"),
        }


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
) -> Totals:
    """Sum of bits and number of scored bytes, for every `world`-th batch of windows."""
    device = next(model.parameters()).device
    windows = scoring_windows(corpus, context, stride=stride, limit=limit)
    bits, count = 0.0, 0
    total = limit or -(-len(corpus) // (stride or context))
    size = max(1, _SCORING_TOKENS.get(device.type, _MANY_TOKENS) // context)
    batches = iter(lambda: list(islice(windows, size)), [])
    for number, batch in enumerate(tracked(batches, -(-total // size))):
        if number % world == rank:
            inputs, targets = (part.to(device) for part in _padded(batch))
            logits = model(inputs).float().flatten(0, 1)
            losses = F.cross_entropy(logits, targets.flatten(), reduction="none")
            bits += float(losses.double().sum()) / math.log(2)
            count += int((targets != IGNORED).sum())
    return {"bits_per_byte": (bits, count)}


def _padded(batch: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Stack windows; a causal model does not see the padding to the right of a short one."""
    length = max(len(inputs) for inputs, _ in batch)
    inputs = torch.stack([F.pad(a, (0, length - len(a))) for a, _ in batch])
    targets = torch.stack([F.pad(b, (0, length - len(b)), value=IGNORED) for _, b in batch])
    return inputs, targets


@dataclass(frozen=True)
class Continuation:
    """What a model wrote.

    Attributes:
        prompt, text: the given and the new part.
        tokens, seconds: how much of it, and how long it took.
    """

    prompt: str
    text: str
    tokens: int
    seconds: float


@torch.no_grad()
def continue_text(
    model: Any,
    prompt: str,
    length: int,
    *,
    max_seq_len: int,
    seed: int | None = None,
    **sampling: Any,
) -> Continuation:
    """Let a model go on writing, beyond its maximum too: it then keeps the last half in view.

    Args:
        prompt: what to go on from; an empty one stands for the beginning of a line.
        length: bytes to write.
        max_seq_len: most tokens the model can look at; of a longer prompt it sees the end.
        sampling: temperature, top_k, top_p, min_p.

    Raises:
        ValueError: a length that nobody waits for, or nonsense among the sampling options.
    """
    given = encode(prompt) or encode("\n")
    if not 1 <= length <= _MOST_WRITTEN:
        raise ValueError(
            f"length must be at least 1 and at most {_MOST_WRITTEN:,}, got {length=}."
        )
    if max_seq_len < 2:
        raise ValueError(f"the model must look at 2 tokens or more to write, got {max_seq_len=}.")
    device = next(model.parameters()).device
    started, tokens, chunk = time.perf_counter(), list(given), 0
    while len(tokens) < len(given) + length:
        # a full window is cut to its last half, so that a cached pass can run on for a while
        view = tokens if len(tokens) < max_seq_len else tokens[-(max_seq_len // 2) :]
        count = min(max_seq_len - len(view), len(given) + length - len(tokens))
        start = torch.tensor([view], device=device)
        chunk_seed = None if seed is None else seed + chunk
        written = model.generate(start, count, seed=chunk_seed, **sampling)
        tokens += written[0, len(view) :].tolist()
        chunk += 1
    seconds = time.perf_counter() - started
    return Continuation(decode(encode(prompt)), decode(tokens[len(given) :]), length, seconds)
