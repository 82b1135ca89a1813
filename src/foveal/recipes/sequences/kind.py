"""The task of sequence classifiers: cross-entropy, and how often they are right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveal.common.dtypes import wide
from foveal.data.sequence_sources import SEQUENCES
from foveal.data.sequences import SequenceDataConfig
from foveal.recipes.classify import Classifier
from foveal.recipes.kind import KindTask, seeded_model
from foveal.recipes.settings import RunConfig


class Sequences(Classifier):
    """Classifiers of token sequences."""

    reader = SEQUENCES
    data = SequenceDataConfig
    unit = things = "sequences"
    assets = ("classes", "num_tokens")
    limit, quick, batch = 10_000, 500, 32

    def build(self, config: RunConfig, **assets: Any) -> nn.Module:
        return seeded_model(
            config,
            num_classes=len(assets["classes"]),
            num_tokens=assets["num_tokens"],
            max_seq_len=config.data.length,
        )

    def loss(
        self, task: KindTask, model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]
    ) -> Tensor:
        """Mean cross-entropy in nats; tokens and mask (batch, length), labels (batch,)."""
        tokens, mask, labels = batch
        return F.cross_entropy(wide(model(tokens, mask)), labels)

    @torch.no_grad()
    def answer(self, model: nn.Module, read: Any, data: SequenceDataConfig, quick: bool) -> Tensor:
        """Logits (batch, classes) of tokens and mask (batch, length)."""
        device = next(model.parameters()).device
        return model(*(part.to(device) for part in read)).float().cpu()

    def facts(self, task: KindTask) -> dict[str, str]:
        lengths = [len(row) for row in task.train.sequences]
        mean = sum(lengths) / len(lengths)
        most = task.config.data.length
        return {"length": f"{mean:,.0f} tokens on average, at most {most:,}"}


KIND = Sequences()
