"""The task of sequence classifiers: cross-entropy, and how often they are right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveal.data.sequence_sources import SEQUENCES
from foveal.data.sequences import SequenceDataConfig, SequenceSet
from foveal.recipes.classify import Classifier, list_classes
from foveal.recipes.kind import KindTask, seeded_model
from foveal.recipes.settings import RunConfig
from foveal.training.progress import tracked

_SCORING_BATCH = 32


class Sequences(Classifier):
    """Classifiers of token sequences."""

    reader = SEQUENCES
    data = SequenceDataConfig
    unit = things = "sequences"
    assets = ("classes", "num_tokens")
    quick = 500

    def build(self, config: RunConfig, **assets: Any) -> nn.Module:
        """The model of a configuration."""
        return seeded_model(
            config,
            num_classes=len(assets["classes"]),
            num_tokens=assets["num_tokens"],
            max_seq_len=config.data.length,
        )

    def most(self, data: SequenceDataConfig) -> int:
        """10,000 sequences."""
        return 10_000

    def loss(
        self, task: KindTask, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        """Mean cross-entropy in nats; tokens and mask (batch, length), labels (batch,)."""
        tokens, mask, labels = batch
        return F.cross_entropy(model(tokens, mask).float(), labels)

    @torch.no_grad()
    def answers(
        self,
        model: nn.Module,
        examples: SequenceSet,
        index: Tensor,
        data: SequenceDataConfig,
        *,
        quick: bool = False,
    ) -> Tensor:
        """Logits (len(index), classes)."""
        device = next(model.parameters()).device
        parts = [torch.zeros(0, len(examples.classes))]
        for part in tracked(index.split(_SCORING_BATCH)):
            tokens, mask = examples.read(part)
            parts.append(model(tokens.to(device), mask.to(device)).float().cpu())
        return torch.cat(parts)

    def facts(self, task: KindTask) -> dict[str, str]:
        """Classes, data, and how long the sequences are."""
        lengths = [len(row) for row in task.train.sequences]
        mean = sum(lengths) / len(lengths)
        told = f"{mean:,.0f} tokens on average, at most {task.config.data.length:,}"
        rows = self.describe(task, {"length": told})
        return {"classes": list_classes(task.train.classes), **rows}


KIND = Sequences()
