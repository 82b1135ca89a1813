"""Steps through plain blocks: the numbers of their modules, and nothing attached is missed."""

import pytest
import torch
from torch import nn

from foveal import patterns as P
from foveal.layers import Stack
from foveal.layers.plain_step import is_plain_block

PATTERNS = [
    P.Full(causal=True),
    P.SlidingWindow(5),
    P.SlidingWindow(40),
    P.Strided(3, causal=True),
    P.Pyramid(block_size=2, causal=True),
]


def make_stack(pattern, dtype=torch.float32, **options):
    torch.manual_seed(0)
    return Stack(16, 2, [pattern], heads=4, dim_head=6, **options).to(dtype).eval()


@torch.no_grad()
def decode(stack, x, prompt=3, max_length=None):
    """The outputs of all positions behind the prompt, a token at a time."""
    cache = stack.make_cache(len(x), max_length)
    y, cache = stack.prefill(x[:, :prompt], cache)
    outputs = [y]
    for place in range(prompt, x.shape[1]):
        y, cache = stack.step(x[:, place : place + 1], cache)
        outputs.append(y)
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("options", [{}, {"kv_heads": 2}, {"rotary": False}], ids=str)
@pytest.mark.parametrize("rows", [1, 3])
def test_a_plain_step_is_the_forward_pass(pattern, options, rows):
    """Rings that turn, logs that grow, pooled keys; shared heads; without positions."""
    stack = make_stack(pattern, torch.float64, **options)
    with torch.no_grad():
        assert all(map(is_plain_block, stack.blocks))
        x = torch.randn(rows, 20, 16, dtype=torch.float64)
        for max_length in (None, 20):
            torch.testing.assert_close(decode(stack, x, max_length=max_length), stack(x))


class Twice(nn.Module):
    """An adapter: twice what it wraps."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return 2 * self.inner(x)


PARTS = ["attn_norm", "attn.to_qkv", "attn.to_out", "attn.rotary", "ff_norm"]
PARTS += ["ff", "ff.to_hidden", "ff.to_out", "ff.dropout", "dropout"]


@pytest.mark.parametrize("part", PARTS)
def test_what_hangs_on_a_part_is_called(part):
    """A hook on any part of a block changes every step as it changes the forward pass."""
    stack = make_stack(P.SlidingWindow(5), torch.float64)
    x = torch.randn(2, 12, 16, dtype=torch.float64)
    plain = decode(stack, x)
    module = stack.blocks[1].get_submodule(part)
    hook = module.register_forward_hook(lambda module, args, out: out * 1.5)
    with torch.no_grad():
        assert not is_plain_block(stack.blocks[1])
        torch.testing.assert_close(decode(stack, x), stack(x))
    assert not torch.allclose(decode(stack, x), plain)
    hook.remove()
    torch.testing.assert_close(decode(stack, x), plain)


@pytest.mark.parametrize("part", ["attn.to_qkv", "attn.to_out", "ff.to_hidden", "ff.to_out"])
def test_an_adapter_is_called(part):
    """A projection that is wrapped is called in steps too."""
    stack = make_stack(P.Full(causal=True), torch.float64)
    block, _, name = f"layers.0.{part}".rpartition(".")
    parent = stack.get_submodule(block)
    setattr(parent, name, Twice(getattr(parent, name)))
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(decode(stack, x), stack(x))


def test_gradients_and_dropout_go_the_ordinary_way():
    """A step that is differentiated, or whose dropout is on, is the modules' own."""
    stack = make_stack(P.Full(causal=True), dropout=0.5)
    (block, _) = stack.blocks
    assert not is_plain_block(block)
    with torch.no_grad():
        assert is_plain_block(block)
        block.ff.dropout.train()
        assert not is_plain_block(block)
        assert not is_plain_block(make_stack(P.Full(causal=True), activation="geglu").blocks[0])
