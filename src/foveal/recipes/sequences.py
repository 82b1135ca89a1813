"""The task of sequence classifiers: cross-entropy, and how often they are right."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveal.common.checks import as_int
from foveal.data.sampling import sampled, spread
from foveal.data.sequence_sources import open_sequences
from foveal.data.sequences import SequenceSet
from foveal.data.stream import Stream
from foveal.recipes.assets import CLASSES, VOCABULARY, class_names, read_asset
from foveal.recipes.build import build_model
from foveal.recipes.config import RunConfig
from foveal.recipes.images import class_totals
from foveal.recipes.runs import write_json
from foveal.training.progress import tracked
from foveal.training.task import Totals

_QUICK_SEQUENCES = 500
MOST_SEQUENCES = 10_000
"""Sequences that are scored at most, unless all are asked for."""
_SCORING_BATCH = 32


def build_sequence_model(config: RunConfig, num_classes: int, num_tokens: int) -> nn.Module:
    """The model of a configuration, its weights drawn from the run's seed."""
    torch.manual_seed(config.training.seed)
    return build_model(
        config.model,
        f"recipe {config.recipe}",
        num_classes=num_classes,
        num_tokens=num_tokens,
        max_seq_len=config.data.length,
    )


def rebuild(config: RunConfig, folder: Path) -> nn.Module:
    """The model of a run, with fresh weights."""
    num_tokens = as_int(str(folder / VOCABULARY), read_asset(folder / VOCABULARY), 1)
    return build_sequence_model(config, len(class_names(folder)), num_tokens)


class SequenceTask:
    """Trains a classifier of token sequences. See `foveal.training.task.Task`."""

    unit = "sequences"
    score = "accuracy"

    def __init__(self, config: RunConfig, rank: int = 0, world_size: int = 1) -> None:
        training = config.training
        self.config = config.data
        self.train_data, self.valid_data = open_sequences(config.data)
        self.stream = Stream(self.train_data, training.batch_size, training.seed, rank, world_size)
        self.units_per_batch = training.batch_size
        self.classes, self.num_tokens = self.train_data.classes, self.train_data.num_tokens
        self.model = build_sequence_model(config, len(self.classes), self.num_tokens)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy in nats; tokens and mask (batch, length), labels (batch,)."""
        tokens, mask, labels = batch
        return F.cross_entropy(model(tokens, mask).float(), labels)

    def evaluate(self, *, quick: bool, rank: int = 0, world_size: int = 1) -> Totals:
        """Shares of right answers on 500 held-out sequences, or 10,000 of them."""
        data = self.valid_data
        chosen = spread(len(data), _QUICK_SEQUENCES if quick else MOST_SEQUENCES)
        mine = chosen[rank::world_size]
        logits = classify_sequences(self.model, data, mine)
        return class_totals(logits, data.labels[mine], data.labels[chosen])

    def save_assets(self, folder: Path) -> None:
        """Write what the run needs besides its weights."""
        write_json(folder / CLASSES, self.classes)
        write_json(folder / VOCABULARY, self.num_tokens)

    def facts(self) -> dict[str, str]:
        """What a report should say about the data and the model."""
        parameters = sum(p.numel() for p in self.model.parameters())
        lengths = [len(row) for row in self.train_data.sequences]
        return {
            "parameters": f"{parameters:,}",
            "classes": ", ".join(self.classes[:20]),
            "training data": _describe(self.train_data),
            "held-out data": _describe(self.valid_data),
            "length": f"{sum(lengths) / len(lengths):,.0f} tokens on average, "
            f"at most {self.config.length:,}",
            **sampled(len(self.valid_data), MOST_SEQUENCES, "sequences"),
        }


def _describe(data: SequenceSet) -> str:
    return f"{data.name}: {len(data):,} sequences, checksum {data.checksum()}"


@torch.no_grad()
def classify_sequences(model: nn.Module, data: SequenceSet, index: Tensor) -> Tensor:
    """Logits (len(index), classes) in float32 on the CPU."""
    device = next(model.parameters()).device
    parts = []
    for part in tracked(index.split(_SCORING_BATCH)):
        tokens, mask = data.read(part)
        parts.append(model(tokens.to(device), mask.to(device)).float().cpu())
    return torch.cat(parts) if len(index) else torch.zeros(0, len(data.classes))
