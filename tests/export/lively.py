"""Models whose logits depend on what they are shown."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def lively(model: Any) -> Any:
    """A model of pictures with weights under which two pictures differ by 1 in some logit.

    Those of a new one differ by less than 1e-4, and a comparison to 1e-4 would say nothing.
    """
    *_, head = (one for one in model.modules() if isinstance(one, nn.Linear))
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim == 1:  # gains of norms, some of which begin as zero, and offsets
                weights.add_(0.3 * torch.randn_like(weights))
        one, other = (model(torch.rand(1, 3, 226, 231)) for _ in range(2))
        head.weight.div_((one - other).abs().max())
    return model
