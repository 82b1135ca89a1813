"""Steps by the native kernel: the numbers of the forward pass, and only where it knows them."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from foveal import patterns as P
from foveal.layers import Rotary, Stack
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
    for option in ({"sinks": True}, {"softcap": 5.0}):
        assert native_step(make(P.Full(causal=True), **sizes, **option).blocks, 1) is None
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


def moved(stack):
    for weight in stack.parameters():
        weight.data = weight.data * 1.5


def swapped(stack):
    state = {name: x * 0.5 for name, x in stack.state_dict().items()}
    for name, weight in stack.named_parameters():
        weight.data = state[name]


@pytest.mark.parametrize("change", [moved, swapped, lambda stack: stack.double()])
@torch.no_grad()
def test_weights_that_move_are_followed(change):
    """Between two tokens weights get new memory, or another dtype: none is read where it lay."""
    stack = make(P.Full(causal=True), dim=16, heads=2, dim_head=8)
    x = torch.randn(1, 6, 16)
    caches = [stack.prefill(x[:, :3], stack.make_cache(1, 9))[1] for _ in range(2)]
    step = stack.stepper(1)
    step(x[:, 3:4], caches[0])
    stack.step(x[:, 3:4], caches[1])
    change(stack)
    token = x[:, 4:5].to(stack.norm.weight.dtype)
    found, expected = step(token, caches[0])[0], stack.step(token, caches[1])[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_what_does_not_fit_never_reaches_the_kernel():
    """Sizes, tensors and caches that it would read past their ends."""

    def blocks(change):
        found = make(P.Full(causal=True), dim=16, heads=2, dim_head=8).blocks
        change(found[1])
        return found

    def plain_tensor(block):
        weight = block.attn.to_out.weight.detach().double()
        del block.attn.to_out.weight
        block.attn.to_out.weight = weight

    changes = [
        plain_tensor,
        lambda block: setattr(block.attn, "to_qkv", torch.nn.Linear(16, 24, bias=False)),
        lambda block: setattr(block.ff, "to_out", torch.nn.Linear(32, 16)),
        lambda block: setattr(block, "ff_norm", torch.nn.LayerNorm((1, 16))),
        lambda block: setattr(block.attn, "rotary", Rotary(4)),
    ]
    for change in changes:
        assert native_step(blocks(change), 1) is None
    stack = make(P.Full(causal=True), dim=16, heads=2, dim_head=8)
    for cache in (stack.make_cache(2), make(P.Full(causal=True), dim=8, heads=2).make_cache(1)):
        assert not native_step(stack.blocks, 1).serves(torch.randn(1, 1, 16), cache.parts)


@torch.no_grad()
def test_one_stepper_for_several_threads():
    """Generations that share a stepper do not mix."""
    stack = make(P.Full(causal=True), dim=16, heads=2, dim_head=8)
    step, tokens = stack.stepper(1), torch.randn(4, 1, 300, 16)

    @torch.no_grad()
    def decoded(x):
        cache = stack.make_cache(1, 300)
        return torch.cat([step(x[:, i : i + 1], cache)[0] for i in range(300)], 1)

    alone = [decoded(x) for x in tokens]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(decoded, tokens))
    assert all(map(torch.equal, alone, together))
