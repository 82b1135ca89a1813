"""Positions of every kind in SelfAttention, a stranger's too: whole, and token by token."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from foveal import patterns as P
from foveal.layers import Relative, ResidualBlock, ResidualStack, Rotary, SelfAttention
from foveal.layers.feed_forward import FeedForward
from foveal.layers.grid_rotary import GridRotary
from foveal.layers.hierarchical import InterleavedRotary
from foveal.layers.positions import Positions
from foveal.layers.token_shift import TokenShift
from foveal.testing import assert_causal


class Halved(Positions):
    """A stranger's: what stands at odd positions counts half."""

    def forward(self, x: Tensor, offset: int | Tensor = 0, stride: int = 1) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device) * stride + offset
        return x * (1 - places % 2 * 0.5).to(x.dtype)[:, None, None]


@dataclass(frozen=True)
class Distances(P.Pattern):
    """A stranger's pattern: a window of the past, whose pairs gain a number for their distance."""

    reach: int

    causal = True
    biased_by_table = True

    @property
    def bias_size(self) -> int:
        return self.reach

    def allows(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        return (q_idx >= k_idx) & (q_idx - k_idx < self.reach)

    def bias_place(self, q_idx: Tensor, k_idx: Tensor) -> Tensor:
        return (q_idx - k_idx).clamp(0, self.reach - 1)


KINDS = {
    "none": lambda: False,
    "rotary": lambda: Rotary(6),
    "interleaved": lambda: InterleavedRotary(6),
    "grid": lambda: GridRotary(5, (3, 7), 6),
    "relative": lambda: Relative(8, 2, 6).double(),
    "stranger": Halved,
}


def layer(kind: str = "none", pattern: P.Pattern | None = None, **options) -> SelfAttention:
    torch.manual_seed(0)
    pattern = pattern or P.SlidingWindow(5)
    return SelfAttention(8, pattern, 2, 6, rotary=KINDS[kind](), **options).double().eval()


def by_hand(attn: SelfAttention, x: Tensor, added: Tensor | float = 0.0) -> Tensor:
    """Softmax attention over turned projections, each head and pair written out."""
    qkv = attn.to_qkv(x).unflatten(-1, (-1, 6))
    turned = qkv if attn.rotary is None else attn.rotary(qkv, 0)
    q, k, v = (part.transpose(1, 2) for part in turned.chunk(3, 2))
    v = v if attn.rotate_values else qkv.chunk(3, 2)[2].transpose(1, 2)
    scores = (q @ k.mT / 6**0.5 + added).masked_fill(~attn.pattern.mask(x.shape[1]), -torch.inf)
    return attn.to_out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def decoded(module, x: Tensor, prompt: int) -> Tensor:
    """The outputs from the last token of the prompt on, a token at a time."""
    y, cache = module.prefill(x[:, :prompt], module.make_cache(len(x)))
    rows = [y[:, -1:]]
    for token in x[:, prompt:].split(1, 1):
        y, cache = module.step(token, cache)
        rows.append(y)
    return torch.cat(rows, 1)


@pytest.mark.parametrize("values", [False, True], ids=["", "values"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "relative"])
def test_what_turns_is_the_formula(kind, values):
    """Queries and keys are turned by any Positions, and values where that is asked for."""
    attn, x = layer(kind, rotate_values=values), torch.randn(2, 23, 8, dtype=torch.float64)
    torch.testing.assert_close(attn(x), by_hand(attn, x))


@torch.no_grad()
@pytest.mark.parametrize("prompt", [1, 4, 22])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_decodes(kind, prompt):
    """Token by token it is the forward pass, with dropout on the output as a part of its own."""
    attn, x = layer(kind, out_dropout=0.5), torch.randn(2, 23, 8, dtype=torch.float64)
    torch.testing.assert_close(decoded(attn, x, prompt), attn(x)[:, prompt - 1 :])


@pytest.mark.parametrize("shared", [True, "shared"])
def test_a_table_over_a_strangers_pattern(shared):
    """A learned table gives its rows to the pairs, whole and token by token, and it learns."""
    attn = layer(pattern=Distances(4), relative_bias=shared)
    x = torch.randn(2, 23, 8, dtype=torch.float64)
    places = torch.arange(23)
    distance = (places[:, None] - places).clamp(0, 3)
    wanted = by_hand(attn, x, attn.rel_bias[distance].permute(2, 0, 1))
    torch.testing.assert_close(attn(x), wanted)
    attn(x).square().sum().backward()
    assert attn.rel_bias.grad.any(1 if shared is True else 0).all()
    with torch.no_grad():
        torch.testing.assert_close(decoded(attn, x, 3), wanted[:, 2:])


def test_what_a_table_needs_is_named():
    """A pattern without one is refused when the layer is made."""
    with pytest.raises(ValueError, match="needs a pattern that is biased_by_table"):
        layer(relative_bias=True)


def test_relative_positions_over_pooled_keys_do_not_decode():
    """The cache of means holds no distances: that is said before anything is decoded."""
    with pytest.raises(ValueError, match="relative positions cannot decode over Pyramid"):
        layer("relative", P.Pyramid(4, causal=True)).make_cache(1)


def test_a_call_may_bring_its_positions():
    """Positions of a call stand in place of the layer's own."""
    attn, x = layer("rotary"), torch.randn(1, 9, 8, dtype=torch.float64)
    other = layer("stranger")
    torch.testing.assert_close(attn(x, rotary=Halved()), other(x))


# -- stacks of a stranger's blocks ----------------------------------------------------------------


def stack(reversible: bool, kind: str, shifted: bool) -> ResidualStack:
    torch.manual_seed(1)
    shift = TokenShift(8, shifts=(0, 1, 3))
    shifts = {"attn": shift, "ff": shift} if shifted else {}
    positions = KINDS[kind]()
    blocks = [
        ResidualBlock(
            8,
            0.0,
            shifts,
            attn=SelfAttention(8, P.SlidingWindow(4 + i), 2, 6, rotary=positions),
            ff=FeedForward(8, 2, "swiglu"),
        )
        for i in range(2)
    ]
    return ResidualStack(blocks, torch.nn.LayerNorm(8), reversible).double()


@pytest.mark.parametrize("shifted", [False, True], ids=["", "shifted"])
@pytest.mark.parametrize("kind", ["rotary", "relative", "stranger"])
@pytest.mark.parametrize("reversible", [False, True], ids=["", "reversible"])
def test_a_stack_decodes_what_it_trains(reversible, kind, shifted):
    """Plain or over two streams, shifted or not: no later token is seen, steps are the pass."""
    model = stack(reversible, kind, shifted).eval()
    x = torch.randn(2, 17, 8, dtype=torch.float64)
    assert_causal(model, 17, dim=8)
    with torch.no_grad():
        for prompt in (1, 2, 9):
            torch.testing.assert_close(decoded(model, x, prompt), model(x)[:, prompt - 1 :])
    with pytest.raises(ValueError, match="empty cache, got position=3"):
        model.prefill(x, model.prefill(x[:, :3], model.make_cache(2))[1])


@pytest.mark.parametrize("kind", ["rotary", "relative"])
def test_recomputing_gives_the_gradients_of_keeping(kind):
    """Checkpointed blocks, and two streams recomputed from their ends, train alike."""
    x = torch.randn(2, 13, 8, dtype=torch.float64)
    found = []
    for checkpointing in (False, True):
        model = stack(False, kind, True).train()
        model.checkpointing = checkpointing
        model(x).square().sum().backward()
        found.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*found)
    model = stack(True, kind, True).train()
    model(x).square().sum().backward()
    kept = stack(True, kind, True)
    one = other = x
    for branch in (branch for block in kept.blocks for branch in block.branches):
        one, other = other, one + branch.run(other)
    kept.norm(one + other).square().sum().backward()
    torch.testing.assert_close(
        [p.grad for p in model.parameters()], [p.grad for p in kept.parameters()]
    )
