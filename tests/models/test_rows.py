"""Rows of a decoding state can be chosen, in any order: what beams and padded batches need."""

import pytest
import torch

from foveal import patterns as P
from foveal.models import HourglassTransformerLM, HTransformer1D, TransformerLM
from foveal.models.causal import CausalLM

TEXT = {"num_tokens": 20, "dim": 8, "heads": 2, "dim_head": 4, "max_seq_len": 64}
MODELS = {
    "ring": lambda: TransformerLM(**TEXT, depth=2, pattern=[P.SlidingWindow(5), P.Strided(3)]),
    "log": lambda: TransformerLM(**TEXT, depth=1, pattern=P.Fixed(4, 1), sinks=True),
    "pyramid": lambda: HTransformer1D(**TEXT, depth=2, block_size=4, causal=True),
    "coarse, shifted": lambda: HTransformer1D(
        **TEXT, depth=1, block_size=4, causal=True, queries="coarse", shift_tokens=True
    ),
    "hourglass": lambda: HourglassTransformerLM(**TEXT, depth=(1, (1, 1, 1), 1)),
}


@pytest.mark.parametrize("name", MODELS)
def test_select(name: str) -> None:
    """Each chosen row goes on as its own sequence would; the state they come from stays."""
    torch.manual_seed(0)
    model: CausalLM = MODELS[name]().eval()
    tokens = torch.randint(20, (3, 7))
    _, first = model.prefill(tokens)
    state, rows = first, torch.tensor([2, 2, 0, 1])
    for _ in range(6):
        state, tokens = state.select(rows), tokens[rows]
        new = torch.randint(20, (4,))
        logits, state = model.step(new, state)
        tokens = torch.cat((tokens, new[:, None]), 1)
        torch.testing.assert_close(logits, model(tokens)[:, -1], rtol=1e-4, atol=1e-5)
        rows = torch.tensor([3, 1, 1, 0])
    assert first.position == 7
    assert state.position == 13
