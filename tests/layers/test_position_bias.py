"""Positions that are added to logits: the same by whole sequences, and token by token."""

from __future__ import annotations

import math

import pytest
import torch

import foveal
from foveal import patterns as P
from foveal.layers import AlibiPositions, SelfAttention, T5Positions
from foveal.testing import assert_close

LENGTH = 30
PATTERNS = [
    P.Full(causal=True),
    P.SlidingWindow(7),
    P.Strided(4),
    P.TextImage(6, P.Neighborhood((4, 6), 3, causal="raster")),
]


def layer(pattern: P.Pattern, kind: str) -> SelfAttention:
    torch.manual_seed(0)
    table = kind == "table"
    given = {
        "alibi": AlibiPositions(4),
        "learned": AlibiPositions(4, learned=True),
        "t5": T5Positions(4, buckets=8, max_distance=16),
    }
    options = {"rotary": False, "relative_bias": True} if table else {"rotary": given[kind]}
    return SelfAttention(16, pattern, heads=4, dim_head=4, kv_heads=2, **options).double()


@pytest.mark.parametrize("kind", ["alibi", "learned", "t5", "table"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_steps_are_the_forward_pass(pattern, kind):
    """Prefill and steps give what the whole sequence gives, padding included."""
    if kind == "table" and pattern.bias_size is None:
        pytest.skip("a sequence has no size of its own")
    attn = layer(pattern, kind)
    x = torch.randn(2, LENGTH, 16, dtype=torch.float64)
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    mask[1, ::4] = False
    whole = attn(x, mask)
    for first in (1, 11):
        out, cache = attn.prefill(x[:, :first], attn.make_cache(2), mask[:, :first])
        parts = [out]
        for i in range(first, LENGTH):
            out, cache = attn.step(x[:, i : i + 1], cache, mask[:, : i + 1])
            parts.append(out)
        assert_close(torch.cat(parts, 1), whole, 1e-10)
        out, cache = attn.prefill(x[:, :first], attn.make_cache(2), mask[:, :first])
        parts = [out]
        for i in range(first, LENGTH, 9):
            end = min(i + 9, LENGTH)
            out, cache = attn.extend(x[:, i:end], cache, mask[:, :end])
            parts.append(out)
        assert_close(torch.cat(parts, 1), whole, 1e-10)


@pytest.mark.parametrize("kind", ["alibi", "t5"])
def test_a_model_decodes(kind):
    """A language model's cached steps are its forward pass at every split, and it learns."""
    torch.manual_seed(0)
    options = {"dim": 16, "depth": 2, "heads": 2, "dim_head": 8, "num_tokens": 11}
    model = foveal.TransformerLM(pattern=P.SlidingWindow(9), positions=kind, **options).eval()
    tokens = torch.randint(11, (2, 23))
    with torch.no_grad():
        whole = model(tokens)
        for first in (1, 5, 22):
            logits, cache = model.prefill(tokens[:, :first])
            assert_close(logits, whole[:, first - 1], 1e-5)
            assert_close(model.prefill(tokens, chunk=first)[0], whole[:, -1], 1e-5)
            for i in range(first, 23):
                logits, cache = model.step(tokens[:, i], cache)
                assert_close(logits, whole[:, i], 1e-5)
        assert model.generate(tokens[:, :5], 6, temperature=0.0).shape == (2, 11)
    model(tokens).sum().backward()
    found = [name for name, p in model.named_parameters() if "position_bias" in name]
    assert len(found) == (kind == "t5")  # one table that all layers share
    assert all(bool(p.grad.any()) for n, p in model.named_parameters() if n in found)


def test_it_is_saved(tmp_path):
    """The shared table is stored once, and read back shared."""
    model = foveal.TransformerLM(dim=16, depth=2, heads=2, dim_head=8, positions="t5").eval()
    model.save_pretrained(tmp_path)
    again = foveal.TransformerLM.from_pretrained(tmp_path).eval()
    tables = [m.position_bias.table for m in again.modules() if isinstance(m, SelfAttention)]
    assert tables[0] is tables[1]
    tokens = torch.arange(9)[None]
    assert torch.equal(model(tokens), again(tokens))


def test_a_layer_is_what_it_says():
    """The definition, worked out beside: alibi with the paper's slopes over a causal window."""
    attn = layer(P.SlidingWindow(5), "alibi")
    x = torch.randn(1, 12, 16, dtype=torch.float64)
    q, k, v = attn._project(x, 0)
    k, v = (t.repeat_interleave(2, 1) for t in (k, v))
    far = torch.arange(12)[:, None] - torch.arange(12)
    slopes = torch.tensor([0.25, 0.0625, 0.015625, 0.00390625], dtype=torch.float64)
    logits = q @ k.mT / math.sqrt(4) - slopes[:, None, None] * far
    weights = logits.masked_fill((far < 0) | (far >= 5), -torch.inf).softmax(-1)
    want = attn.to_out((weights @ v).transpose(1, 2).flatten(2))
    assert_close(attn(x), want, 1e-10)


def test_what_does_not_fit_is_named():
    """Heads, patterns that pool, and words that are none."""
    with pytest.raises(ValueError, match="heads=2"):
        SelfAttention(16, P.Full(), heads=2, rotary=AlibiPositions(4))
    with pytest.raises(ValueError, match="pools keys"):
        SelfAttention(16, P.Pyramid(4), heads=4, rotary=AlibiPositions(4))
    with pytest.raises(ValueError, match="T5Positions needs"):
        T5Positions(4, buckets=31, bidirectional=True)
    with pytest.raises(ValueError, match="did you mean 'alibi'"):
        foveal.TransformerLM(dim=16, positions="alibbi")
