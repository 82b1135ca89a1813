"""Layers: positions, feed-forward, attention and stacks."""

import pytest
import torch

from foveal import patterns as P
from foveal.layers import CrossAttention, FeedForward, Relative, Rotary, SelfAttention, Stack
from foveal.ops import attend

THREE_HEADS = torch.arange(12).reshape(3, 2, 2) % 5 > 0


def test_rotary_scores_depend_on_distance_only():
    """The product of turned queries and keys is the same wherever the pair stands."""
    torch.manual_seed(0)
    rotary = Rotary(8)
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    near = (rotary(q, 5) * rotary(k, 2)).sum()
    far = (rotary(q, 200_003) * rotary(k, 200_000)).sum()
    torch.testing.assert_close(near, far, rtol=0, atol=1e-5)
    assert (near - (rotary(q, 6) * rotary(k, 2)).sum()).abs() > 1e-3


@pytest.mark.parametrize("offset", [0, 3, 1000, 140_000])
def test_rotary_token_by_token_equals_all_at_once(offset):
    """Any offset gives the same rows, before and after the table has grown."""
    x = torch.randn(1, 40, 2, 6, dtype=torch.float64)
    together = Rotary(6)(x, offset)
    rotary = Rotary(6)
    alone = [rotary(x[:, i : i + 1], offset + i) for i in range(40)]
    assert torch.equal(torch.cat(alone, 1), together)
    strided = rotary(x[:, ::3], offset, 3)
    assert torch.equal(strided, together[:, ::3])


def test_rotary_first_position_turns_nothing_and_lengths_stay():
    """Position 0 is the identity, and turning never changes a norm."""
    x = torch.randn(1, 50, 2, 6)
    y = Rotary(6)(x)
    torch.testing.assert_close(y[:, 0], x[:, 0])
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    assert Rotary(6)(x.bfloat16()).dtype == torch.bfloat16


def test_rotary_table_made_in_inference_mode_can_train():
    """Generating first and training afterwards works with the same table."""
    rotary = Rotary(4)
    with torch.inference_mode():
        rotary(torch.randn(1, 3, 1, 4))
    x = torch.randn(1, 3, 1, 4, requires_grad=True)
    rotary(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("activation", ["gelu", "geglu", "swiglu"])
def test_feed_forward_keeps_shape(activation):
    """All activations map tokens to tokens, each token alone."""
    layer = FeedForward(8, 2, activation)
    x = torch.randn(2, 5, 8)
    assert layer(x).shape == x.shape
    torch.testing.assert_close(layer(x)[:, 2:3], layer(x[:, 2:3]))


@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("kv_heads", [None, 1])
def test_self_attention_decodes_what_it_computes(rotary, kv_heads):
    """prefill and step give the rows of the forward pass."""
    torch.manual_seed(0)
    layer = SelfAttention(12, P.SlidingWindow(5), 4, 6, kv_heads, rotary).double()
    x = torch.randn(2, 20, 12, dtype=torch.float64)
    whole = layer(x)
    with torch.no_grad():
        first, cache = layer.prefill(x[:, :7], layer.make_cache(2))
        rows = [first]
        for i in range(7, 20):
            row, cache = layer.step(x[:, i : i + 1], cache)
            rows.append(row)
    torch.testing.assert_close(torch.cat(rows, 1), whole, rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="empty cache"):
        layer.prefill(x, cache)


def test_self_attention_ignores_what_the_mask_hides():
    """Padding on either side changes nothing for real tokens; a row of padding is finite."""
    layer = SelfAttention(12, P.Full(), 2, 6, rotary=False).double()
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, 6:] = False
    mask[1] = False
    out = layer(x, mask)
    torch.testing.assert_close(out[:1, :6], layer(x[:1, :6]))
    assert out.isfinite().all()


def test_cross_attention_with_a_mask():
    """Masked keys do not exist; queries without keys get the bias of the output layer."""
    layer = CrossAttention(12, 2, 6, rotary=False).double()
    x, context = torch.randn(2, 1, 5, 12, dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False, False]])
    torch.testing.assert_close(layer(x, context, key_mask=mask), layer(x, context[:, :3]))
    empty = layer(x, context, key_mask=torch.zeros_like(mask))
    torch.testing.assert_close(empty, layer.to_out.bias.expand_as(empty))


def test_stack_cycles_patterns_and_checkpoints():
    """Patterns repeat over the blocks; checkpointing changes memory, not numbers."""
    torch.manual_seed(0)
    patterns = [P.SlidingWindow(3), P.Full(causal=True)]
    stack = Stack(8, 3, patterns, heads=2, dim_head=4)
    assert [block.attn.pattern for block in stack.blocks] == [*patterns, patterns[0]]
    x = torch.randn(1, 10, 8)
    grads = []
    for stack.checkpointing in (False, True):
        stack.zero_grad()
        stack(x).square().sum().backward()
        grads.append([p.grad.clone() for p in stack.parameters()])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_checkpointing_recomputes_tiled_attention():
    """The tiled operator, too, may be recomputed in the backward pass."""
    stack = Stack(8, 1, [P.SlidingWindow(9)], heads=2, dim_head=4)
    x, grads = torch.randn(1, 600, 8), []
    for stack.checkpointing in (False, True):
        stack.zero_grad()
        stack(x).square().sum().backward()
        grads.append(stack.blocks[0].attn.to_qkv.weight.grad.clone())
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SelfAttention(10, P.Full(), 3, None), "heads must divide dim"),
        (lambda: SelfAttention(8, P.Full(), 4, 4, kv_heads=3), "kv_heads must divide heads"),
        (lambda: SelfAttention(8, P.Full(), 4, 5), "even"),
        (lambda: SelfAttention(8, P.Full(), 0), "heads must be a positive int"),
        (lambda: SelfAttention(8, P.Full(), dropout=1.5), "dropout"),
        (lambda: FeedForward(8, activation="relu6"), "activation must be 'gelu'"),
        (lambda: FeedForward(8, 0), "ff_mult"),
        (lambda: Stack(8, -1, [P.Full()]), "depth"),
        (lambda: Stack(8, 1, []), "patterns"),
        (
            lambda: SelfAttention(
                8, P.BlockSparse(torch.arange(12).reshape(3, 2, 2) % 5 > 0, 4), 2
            ),
            "3 heads of its own",
        ),
    ],
)
def test_nonsense_sizes(build, message):
    """Sizes that do not fit are refused with the values in the message."""
    with pytest.raises(ValueError, match=message):
        build()


def test_sinks_and_soft_cap_are_options_of_a_layer():
    """The layer computes what attend does with them, learns the sinks, and says so."""
    torch.manual_seed(0)
    layer = SelfAttention(16, P.SlidingWindow(5), 2, 8, rotary=False, softcap=0.5, sinks=True)
    torch.nn.init.normal_(layer.sinks)
    x = torch.randn(2, 11, 16)
    q, k, v = (part.transpose(1, 2) for part in layer.to_qkv(x).view(2, 11, 3, 2, 8).unbind(2))
    out = attend(q, k, v, layer.pattern, sinks=layer.sinks, softcap=0.5, impl="reference")
    want = layer.to_out(out.transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x), want, rtol=1e-4, atol=1e-6)
    layer(x).sum().backward()
    assert layer.sinks.grad.abs().min() > 0
    assert "softcap=0.5, sinks=True" in repr(layer)
    plain = SelfAttention(16, P.SlidingWindow(5), 2, 8)
    assert "sinks" not in plain.state_dict()
    assert "softcap" not in repr(plain)
    with pytest.raises(ValueError, match="softcap must be a positive number"):
        SelfAttention(16, P.Full(), 2, 8, softcap=0)
    with pytest.raises(ValueError, match="softcap cannot bound relative positions"):
        SelfAttention(16, P.Full(), 2, 8, rotary=Relative(16, 2, 8), softcap=1.0)
