"""Prepared steps: the numbers of the modules, and nothing attached is missed."""

import types

import pytest
import torch
from torch import nn

from foveal import patterns as P
from foveal.layers import SelfAttention, Stack
from foveal.layers.prepared import can_prepare, can_prepare_attention, does_something, prepared
from foveal.models import HourglassTransformerLM

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
    """The outputs of all positions behind the prompt, a token at a time, in both ways."""
    both = []
    for step in (stack.step, stack.stepper(len(x))):
        cache = stack.make_cache(len(x), max_length)
        y, cache = stack.prefill(x[:, :prompt], cache)
        outputs = [y]
        for place in range(prompt, x.shape[1]):
            y, cache = step(x[:, place : place + 1], cache)
            outputs.append(y)
        assert cache.position == x.shape[1]
        both.append(torch.cat(outputs, 1))
    torch.testing.assert_close(both[1], both[0])
    return both[0]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("options", [{}, {"kv_heads": 2}, {"rotary": False}], ids=str)
@pytest.mark.parametrize("rows", [1, 3])
def test_a_plain_step_is_the_forward_pass(pattern, options, rows):
    """Rings that turn, logs that grow, pooled keys; shared heads; without positions."""
    stack = make_stack(pattern, torch.float64, **options)
    with torch.no_grad():
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


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_float32(pattern):
    """The same in float32, as most models are, a hundred tokens on."""
    stack = make_stack(pattern)
    x = torch.randn(1, 100, 16)
    with torch.no_grad():
        torch.testing.assert_close(decode(stack, x), stack(x), atol=1e-5, rtol=1e-4)


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


def test_weights_change_in_place():
    """What was prepared computes with the weights of today."""
    stack = make_stack(P.Full(causal=True), torch.float64)
    x = torch.randn(1, 2, 16, dtype=torch.float64)
    with torch.no_grad():
        step = stack.stepper(1)
        for weight in stack.parameters():
            weight.mul_(1.5)
        cache = stack.prefill(x[:, :1], stack.make_cache(1))[1]
        torch.testing.assert_close(step(x[:, 1:], cache)[0], stack(x)[:, 1:])


@pytest.mark.parametrize("activation", ["gelu", "geglu", "swiglu"])
def test_activations(activation):
    """Each activation decodes to the forward pass."""
    stack = make_stack(P.SlidingWindow(4), torch.float64, activation=activation)
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(decode(stack, x), stack(x))


def test_gradients_and_dropout_go_the_ordinary_way():
    """A step that is differentiated, under autocast, or whose dropout is on, is the modules'."""
    stack = make_stack(P.Full(causal=True), dropout=0.5)
    assert not can_prepare()
    assert stack.stepper(1) == stack.step
    with torch.no_grad():
        assert can_prepare()
        with torch.autocast("cpu", torch.bfloat16):
            assert not can_prepare()
        assert not does_something(stack.blocks[0].dropout)
        assert prepared(stack.blocks[0].dropout, 1) is None
        x, cache = torch.ones(1, 1, 16), stack.make_cache(1)
        stack.blocks[0].ff.dropout.train()
        step = stack.stepper(1)
        one, two = (step(x, cache.clone())[0] for _ in range(2))
        assert not torch.equal(one, two)
    x.requires_grad_()
    stack.eval().step(x, cache)[0].sum().backward()
    assert x.grad is not None


def test_a_generation_with_hooks():
    """A generation calls what hangs on any layer, as often as there are tokens."""
    model = HourglassTransformerLM(dim=16, heads=2, dim_head=8, depth=(1, (1, 1, 1), 1)).eval()
    plain = model.generate([[1, 2]], 12, temperature=0)
    seen = []
    for module in (model.token_emb, model.to_logits, model.emb_dropout):
        module.register_forward_hook(lambda module, args, out: seen.append(type(module)))
    assert torch.equal(model.generate([[1, 2]], 12, temperature=0), plain)
    assert len(seen) == 3 * 12
    model.to_logits.register_forward_hook(lambda module, args, out: -out)
    assert not torch.equal(model.generate([[1, 2]], 12, temperature=0), plain)


class Cooled(SelfAttention):
    """A stranger's kind: colder queries."""

    def _project(self, x, offset, rotary=None):
        q, k, v = super()._project(x, offset, rotary)
        return 2 * q, k, v


def cooled(attn):
    attn.__class__ = Cooled


def colder_step(attn):
    attn.step = types.MethodType(Cooled.step, attn)


@pytest.mark.parametrize(
    "change",
    [
        cooled,
        colder_step,
        lambda attn: setattr(attn, "temperature", 2.0),
        lambda attn: setattr(attn, "temperature", nn.Parameter(torch.ones(1))),
        lambda attn: attn.register_buffer("shift", torch.ones(1)),
        lambda attn: setattr(attn, "q_norm", nn.LayerNorm(8)),
        lambda attn: setattr(attn, "rotate_values", True),
    ],
)
@torch.no_grad()
def test_a_kind_that_nobody_named_is_not_taken_for_plain(change):
    """A subclass, a method or an option of a stranger goes its own way, token by token."""
    stack = make_stack(P.Full(causal=True))
    attn = stack.blocks[1].attn
    assert can_prepare_attention(attn)
    change(attn)
    assert not can_prepare_attention(attn)
    x = torch.randn(1, 8, stack.norm.normalized_shape[0], dtype=stack.norm.weight.dtype)
    torch.testing.assert_close(decode(stack, x), stack(x), atol=1e-5, rtol=1e-5)
