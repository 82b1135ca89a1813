"""Steps by the native kernel: the numbers of the forward pass, and only where it knows them."""

import pytest
import torch

from foveal import patterns as P
from foveal.layers import Stack
from foveal.layers.native_step import native_step
from foveal.models import HourglassTransformerLM, TransformerLM
from foveal.ops import native

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not native.ready(), reason="no native kernel here"),
]

SIZES = [
    {"dim": 16, "heads": 4, "dim_head": 6},
    {"dim": 13, "heads": 3, "dim_head": 10, "kv_heads": 1, "ff_mult": 2.5},
    {"dim": 40, "heads": 4, "dim_head": 8, "kv_heads": 2, "rotary": False},
    {"dim": 128, "heads": 2, "dim_head": 64},
]
PATTERNS = [P.Full(causal=True), P.SlidingWindow(5), P.SlidingWindow(90)]


def make(pattern, **sizes):
    torch.manual_seed(0)
    stack = Stack(depth=3, patterns=[pattern], **sizes).eval()
    for weight in stack.parameters():  # no bias of zero, no scale of one
        weight.data += 0.2 * torch.randn_like(weight)
    return stack


@torch.no_grad()
def decode(stack, x, prompt, max_length):
    cache = stack.make_cache(1, max_length)
    y, cache = stack.prefill(x[:, :prompt], cache)
    step, outputs = stack.stepper(1), [y]
    for place in range(prompt, x.shape[1]):
        y, cache = step(x[:, place : place + 1], cache)
        outputs.append(y)
    assert all(part.position == x.shape[1] == cache.position for part in cache.parts)
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@torch.no_grad()
def test_it_is_the_forward_pass(pattern, sizes):
    """Odd sizes, shared heads, rings that turn and logs that grow, beside float64."""
    stack = make(pattern, **sizes)
    assert native_step(stack.blocks, 1) is not None
    x = torch.randn(1, 100, sizes["dim"])
    outputs = [decode(stack, x, 3, length) for length in (None, 100)]
    expected = stack.double()(x.double()).float()
    for found in outputs:
        torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)


@torch.no_grad()
def test_it_steps_only_what_it_knows():
    """More rows, other dtypes, patterns, activations, hooks and training are not its own."""
    sizes = {"dim": 16, "heads": 2, "dim_head": 8}
    blocks = make(P.Full(causal=True), **sizes).blocks
    assert native_step(blocks, 1) is not None
    assert native_step(blocks, 2) is None
    assert native_step([], 1) is None
    assert native_step(make(P.Full(causal=True), **sizes).double().blocks, 1) is None
    assert native_step(make(P.Full(causal=True), **sizes, activation="swiglu").blocks, 1) is None
    assert native_step(make(P.Full(causal=True), **sizes, dropout=0.1).train().blocks, 1) is None
    assert native_step(make(P.Full(causal=True), dim=512, heads=8).blocks, 1) is None
    with torch.enable_grad():
        assert native_step(blocks, 1) is None
    for name in ("attn_norm", "attn.to_out", "attn.rotary", "ff", "dropout"):
        hook = blocks[1].get_submodule(name).register_forward_hook(lambda *given: None)
        assert native_step(blocks, 1) is None
        hook.remove()
    assert native_step(blocks, 1) is not None
    strided = make(P.Strided(3, causal=True), **sizes)
    x = torch.randn(1, 20, 16)
    torch.testing.assert_close(decode(strided, x, 3, 20), strided(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["transformer", "hourglass"])
def test_a_generation_is_that_without_a_cache(family):
    """Greedily the same tokens, over a window's end too; a full cache says so."""
    torch.manual_seed(1)
    sizes = {"dim": 32, "heads": 2, "dim_head": 16, "max_seq_len": 64}
    if family == "transformer":
        model = TransformerLM(depth=2, pattern=[P.SlidingWindow(7), P.Full(causal=True)], **sizes)
    else:
        model = HourglassTransformerLM(depth=(1, (1, 2, 1), 1), shorten_factor=(3, 2), **sizes)
    cached = model.generate([[1, 2, 3]], 61, temperature=0)
    assert torch.equal(cached, model.generate([[1, 2, 3]], 61, temperature=0, use_cache=False))


@torch.no_grad()
def test_more_than_max_length():
    """One token too many is refused by name, and nothing is written."""
    stack = make(P.Full(causal=True), dim=16, heads=2, dim_head=8)
    cache = stack.prefill(torch.randn(1, 4, 16), stack.make_cache(1, 4))[1]
    with pytest.raises(ValueError, match="max_length=4"):
        stack.stepper(1)(torch.randn(1, 1, 16), cache)
    assert cache.position == 4


@torch.no_grad()
def test_nan_stays_with_its_sequence():
    """NaN in a token is NaN in the tokens that read it, layer by layer, and in no others."""
    stack = make(P.SlidingWindow(3), dim=16, heads=2, dim_head=8)
    x = torch.randn(1, 14, 16)
    x[0, 5] = torch.nan
    found = decode(stack, x, 2, 14)
    assert found.isnan().any(-1)[0].nonzero()[:, 0].tolist() == list(range(5, 12))
    assert found[0, 5:12].isnan().all()
