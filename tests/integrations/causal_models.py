"""Causal models of every kind, small, inside transformers: what the tests of them share."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from foveal import models as M
from foveal import patterns as P
from foveal.integrations.transformers import FovealForCausalLM
from foveal.models.causal import CausalLM
from foveal.models.transformer import TransformerConfig

TEXT: dict[str, Any] = {"num_tokens": 20, "dim": 8, "heads": 2, "dim_head": 4, "max_seq_len": 64}


class StrangersLM(M.TransformerLM):
    """A causal model that somebody else registered, with a part named as nothing of ours is."""

    family = "strangers"
    config_class = TransformerConfig

    def __init__(self, config: TransformerConfig | None = None, /, **options: Any) -> None:
        super().__init__(config, **options)
        self.model = nn.Linear(self.dim, self.dim)

    def _logits(self, x: Tensor) -> Tensor:
        return super()._logits(self.model(x))


MODELS = {
    "windows": lambda: M.TransformerLM(
        **TEXT, depth=2, pattern=[P.SlidingWindow(5), P.Strided(3)], kv_heads=1, sinks=True
    ),
    "t5": lambda: M.TransformerLM(**TEXT, depth=2, positions="t5", tie_embeddings=True),
    "alibi": lambda: M.TransformerLM(**TEXT, depth=1, positions="alibi"),
    "pyramid": lambda: M.TransformerLM(**TEXT, depth=1, pattern=P.Pyramid(4, causal=True)),
    "hourglass": lambda: M.HourglassTransformerLM(
        **TEXT, depth=(1, (1, 1, 1), 1), shorten_factor=(2, 3)
    ),
    "relative": lambda: M.HourglassTransformerLM(**TEXT, depth=(1, 1, 1), positions="relative"),
    "hourglass package": lambda: M.HourglassTransformerLM(
        **TEXT,
        depth=(1, 1, 1),
        compat="hourglass-transformer-pytorch-0.0.6",
        norms="single",
        positions="absolute",
        shorten_factor=2,
    ),
    "htransformer": lambda: M.HTransformer1D(
        **TEXT, depth=2, block_size=4, causal=True, shift_tokens=True, relative_bias=True
    ),
    "coarse": lambda: M.HTransformer1D(
        **TEXT, depth=2, block_size=4, causal=True, queries="coarse", reversible=True
    ),
    "htransformer package": lambda: M.HTransformer1D(
        **TEXT, depth=1, block_size=2, causal=True, compat="h-transformer-1d-0.1.9"
    ),
    "strangers": lambda: StrangersLM(**TEXT, depth=1),
}
FEW = ("windows", "relative", "htransformer")
every = pytest.mark.parametrize("name", MODELS)
few = pytest.mark.parametrize("name", FEW)


def make(name: str = "windows") -> tuple[CausalLM, FovealForCausalLM]:
    """A model in evaluation mode, with weights that no two tokens come equal by, and wrapped."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value), alpha=0.3)
    return model, FovealForCausalLM.from_foveal(model)


def prompt(rows: int = 3, length: int = 7) -> Tensor:
    torch.manual_seed(1)
    return torch.randint(1, 20, (rows, length))


def padded(side: str, least: int = 1) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Tokens and mask (4, 8), of 8, 3, `least` and 3 real tokens a row; and these rows alone."""
    tokens, counts = prompt(4, 8), [8, 3, least, 3]
    mask = torch.zeros(4, 8, dtype=torch.long)
    for row, count in enumerate(counts):
        mask[row, slice(8 - count, 8) if side == "left" else slice(0, count)] = 1
    rows = [one[real.bool()][None] for one, real in zip(tokens, mask, strict=True)]
    return tokens.masked_fill(mask == 0, 999), mask, rows  # what no vocabulary has


def same_weights(one: nn.Module, other: nn.Module) -> None:
    """The same names and numbers, and as many parameters, so that what is tied stays so."""
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert len(list(one.parameters())) == len(list(other.parameters()))
