"""Which parameters are trained how: AdamW, or Muon for the matrices inside a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from foveal.training.config import OptimizerConfig
from foveal.training.muon import Muon, is_cut

MakeOptimizers = Callable[[nn.Module], list[torch.optim.Optimizer]]
"""The optimizers of a model."""


def make_optimizers(
    model: nn.Module, config: OptimizerConfig, device: torch.device
) -> list[torch.optim.Optimizer]:
    """The optimizers of a model; all of them step together and share one learning rate.

    Muon (Jordan et al., 2024) moves a matrix by its orthogonalised momentum. It is for hidden
    matrices only: embeddings and output layers, which belong to the model itself and not to a
    module inside it, are left to AdamW, and so is what is not a matrix.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    hidden: dict[str, Tensor] = {}
    if config.name == "muon":
        hidden = {name: p for name, p in trained.items() if p.ndim == 2 and name.count(".") > 1}
    made: list[torch.optim.Optimizer] = []
    if hidden:
        made.append(
            Muon(
                hidden.values(),
                lr=config.learning_rate,
                weight_decay=config.weight_decay,
                momentum=config.momentum,
            )
        )
    rest = [p for name, p in trained.items() if name not in hidden]
    if rest:
        made.append(_adamw(rest, config, device))
    if not made:
        raise ValueError("the model has no parameters to train.")
    return made


def _adamw(
    parameters: Sequence[Tensor], config: OptimizerConfig, device: torch.device
) -> torch.optim.Optimizer:
    """AdamW that decays matrices and leaves vectors alone."""
    # what is in parts (DTensors) cannot be stepped in one call with what is whole
    groups = [
        {
            "params": [p for p in parameters if (p.ndim >= 2) == decays and is_cut(p) == cut],
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for cut in (False, True)
        for decays in (True, False)
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        eps=config.epsilon,
        fused=device.type in ("cpu", "cuda"),
    )
