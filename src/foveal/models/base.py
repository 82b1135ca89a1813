"""What every model has: a configuration, files, a cost, activation checkpointing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from foveal.models.config import ModelConfig
from foveal.models.storage import load_model, save_model


@contextmanager
def evaluating(*modules: Any) -> Iterator[None]:
    """Evaluation mode for modules (what is none is passed over); afterwards each part's own."""
    parts = [part for one in modules if isinstance(one, nn.Module) for part in one.modules()]
    modes = [(part, part.training) for part in parts]
    try:
        for one in modules:
            if isinstance(one, nn.Module):
                one.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training


class Model(nn.Module):
    """Base of all models.

    Attributes:
        family: name of the family in configuration files and in the registry.
        settings: the frozen configuration.
    """

    family: ClassVar[str]
    config_class: ClassVar[type[ModelConfig]]
    settings: ModelConfig
    max_seq_len: int  # of models that read tokens

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's keywords and their values."""
        return self.settings.to_dict()

    @property
    def num_parameters(self) -> int:
        """Number of trained values."""
        return sum(p.numel() for p in self.parameters())

    def example_inputs(self, length: Any = None) -> tuple[Tensor, ...]:
        """Inputs of `forward` without values, on the meta device: one sequence, or one picture.

        Args:
            length: tokens, or (height, width) of the picture; the model's own when None.
        """
        count = self.max_seq_len if length is None else length
        return (torch.empty(1, count, dtype=torch.long, device="meta"),)

    def activation_checkpointing(self, enabled: bool = True) -> Self:
        """Recompute blocks in the backward pass: less memory, about a third more time."""
        for module in self.modules():
            if isinstance(getattr(module, "checkpointing", None), bool):
                module.checkpointing = enabled  # type: ignore[assignment]
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into the folder, each atomically."""
        save_model(self, folder)

    @classmethod
    def from_pretrained(cls, folder: str | Path, device: torch.device | str | None = None) -> Self:
        """The model that `save_pretrained` wrote, in evaluation mode.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file is damaged, or describes another model.
        """
        model = load_model(folder, device)
        if not isinstance(model, cls):
            raise ValueError(
                f"{folder} holds a model of family {model.family!r}, not a {cls.__name__}; use "
                f"{type(model).__name__}.from_pretrained."
            )
        return model
