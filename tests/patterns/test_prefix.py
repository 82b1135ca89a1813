"""Prefix, NextScale and BlockDiffusion: what they are, and decoding after a prefix."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import foveal
from foveal import patterns as P
from foveal.caches import AttentionCache
from foveal.models import TransformerLM
from foveal.ops import native
from foveal.testing import assert_close, assert_pattern

IMPLS = ["reference", "dense", "tiled"]
if native.why_not("cpu", torch.float32) is None:
    IMPLS.append("native")


@settings(max_examples=12, deadline=None)
@given(st.sampled_from((0, 1, 2, 5, 64, 97)), st.booleans(), st.sampled_from((0, 1, 7, 97, 131)))
def test_contract(tokens, causal, length):
    """A prefix alone, and in unions and intersections, keeps every promise of a pattern."""
    prefix = P.Prefix(tokens, causal)
    for pattern in (
        prefix,
        prefix | P.SlidingWindow(6),
        prefix | P.Full(causal=True),
        prefix & P.Blocks(5),
    ):
        assert_pattern(pattern, length)


def test_causality_is_told_right():
    """One token, or the past only, is causal; a prefix that reads itself both ways is not."""
    window = P.SlidingWindow(256)
    assert not (P.Prefix(2) | window).is_causal
    assert (P.Prefix(1) | window).is_causal
    assert (P.Prefix(4, causal=True) | window).is_causal
    assert ((P.Prefix(4) & P.Full(causal=True)) | window).is_causal
    assert (P.Prefix(16) | window).horizon() == (16, 256)
    assert (P.Prefix(16) | window).decodes_from == 16
    assert (P.Prefix(16) | P.SlidingWindow(3, causal=False)).decodes_from is None


def test_prefix_language_model():
    """Both ways inside the prefix, the past after it: as attention-gym's mask says."""
    mask = (P.Prefix(3) | P.Full(causal=True)).mask(6)
    i, j = torch.arange(6)[:, None], torch.arange(6)[None]
    assert torch.equal(mask, (j < 3) | (j <= i))


@pytest.mark.parametrize("prompt", [5, 6, 20])
def test_decoding_after_the_prefix(prompt):
    """A cache holds the prefix and the window, and steps give what all tokens at once give."""
    pattern = P.Prefix(5) | P.SlidingWindow(4)
    q, k, v = torch.randn(3, 1, 2, 30, 8, dtype=torch.float64).unbind()
    whole = foveal.attend(q, k, v, pattern, impl="reference")
    cache = AttentionCache(pattern, 1, 2, 8, 30, dtype=torch.float64)
    cache.prefill(k[:, :, :prompt], v[:, :, :prompt])
    for at in range(prompt, 30):
        cache.append(k[:, :, at : at + 1], v[:, :, at : at + 1])
        assert_close(cache.attend(q[:, :, at : at + 1]), whole[:, :, at : at + 1])
    assert cache.num_bytes <= 2 * 2 * 8 * 8 * (5 + 4 + 4)


def test_decoding_before_the_end_of_the_prefix():
    """Tokens of the prefix cannot come one at a time, for those before have read them."""
    pattern = P.Prefix(5) | P.SlidingWindow(4)
    x = torch.randn(1, 2, 3, 8)
    cache = AttentionCache(pattern, 1, 2, 8).prefill(x, x).append(x[:, :, :1], x[:, :, :1])
    with pytest.raises(ValueError, match="the first 5 tokens must come in one call"):
        cache.attend(x[:, :, :1])
    with pytest.raises(ValueError, match="must be causal"):
        AttentionCache(P.Prefix(5) | P.Full(), 1, 2, 8)


@pytest.mark.parametrize("sides", [(1,), (1, 2, 3, 4), (1, (2, 5), 9), (1, 1, 1), (4, 1, 11)])
def test_next_scale(sides):
    """Maps read themselves and those before, at every length that they can be cut to."""
    pattern = P.NextScale(sides)
    for length in {0, 1, pattern.ends[-1] // 2, pattern.ends[-1]}:
        assert_pattern(pattern, length)
    number = torch.tensor([k for k, side in enumerate(sides) for _ in range(area(side))])
    assert torch.equal(pattern.mask(len(number)), number[:, None] >= number[None])


def area(side) -> int:
    return side[0] * side[1] if isinstance(side, tuple) else side * side


@pytest.mark.parametrize("size", [1, 3, 16, 64, 70])
@pytest.mark.parametrize("tokens", [1, 5, 64, 97])
def test_block_diffusion(size, tokens):
    """The mask of the paper, written from its three parts."""
    pattern = P.BlockDiffusion(size, tokens)
    assert_pattern(pattern, 2 * tokens)
    place = torch.arange(2 * tokens)
    clean, block = place >= tokens, place % tokens // size
    q, k = block[:, None], block[None]
    diagonal = (q == k) & (clean[:, None] == clean[None])
    offset = (q > k) & clean[None] & ~clean[:, None]
    causal = (q >= k) & clean[None] & clean[:, None]
    assert torch.equal(pattern.mask(2 * tokens), diagonal | offset | causal)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    "pattern",
    [
        P.Prefix(20),
        P.Prefix(70) | P.SlidingWindow(9),
        P.NextScale((1, 2, 4, 6, 9)),
        P.BlockDiffusion(12, 69),
    ],
    ids=repr,
)
def test_every_implementation(pattern, impl):
    """Outputs and gradients are those of the formula, grouped heads and some queries too."""
    dtype = torch.float32 if impl == "native" else torch.float64
    limit = 2e-5 if impl == "native" else 1e-10
    torch.manual_seed(1)
    shapes = ((2, 4, 138, 16), (2, 2, 138, 16), (2, 2, 138, 24))
    exact = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in shapes]
    for queries in (slice(0, 138), slice(60, 130)):
        q, k, v = exact[0][:, :, queries], *exact[1:]
        i, j = torch.arange(138)[queries, None], torch.arange(138)[None]
        k, v = (x.repeat_interleave(2, 1) for x in (k, v))
        logits = (q @ k.mT / 4).masked_fill(~pattern.allows(i, j), -torch.inf)
        want = logits.softmax(-1) @ v
        noise = torch.randn_like(want)
        given = [x.detach().to(dtype).requires_grad_() for x in exact]
        some = given[0][:, :, queries]
        out = foveal.attend(some, *given[1:], pattern, q_offset=queries.start, impl=impl)
        pairs = zip(
            (out, *torch.autograd.grad((out * noise).sum(), given)),
            (want, *torch.autograd.grad((want * noise).sum(), exact)),
            strict=True,
        )
        for got, wanted in pairs:
            error = (got.double() - wanted).pow(2).mean().sqrt() / wanted.pow(2).mean().sqrt()
            assert error < limit


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: P.Prefix(-1), "num_tokens must be an int of at least 0, got num_tokens=-1"),
        (lambda: P.Prefix(3, causal="no"), "causal must be True or False"),
        (lambda: P.NextScale(()), "sides must be a list of at least one side"),
        (lambda: P.NextScale(4), "sides must be a list of at least one side, got 4"),
        (lambda: P.NextScale((1, 0)), r"sides\[1\] must be"),
        (lambda: P.NextScale((1, 2)).tiles(6), "length must be at most 5"),
        (lambda: P.BlockDiffusion(0, 4), "block_size must be a positive int"),
        (lambda: P.BlockDiffusion(2, 4).tiles(4), "length must be 8, the noised and the clean"),
    ],
)
def test_errors(call, says):
    """What is wrong is told by name, with what was expected."""
    with pytest.raises(ValueError, match=says):
        call()


@pytest.mark.parametrize("within", [P.Full(causal=True), P.SlidingWindow(4), P.Strided(3)])
@pytest.mark.parametrize("prompt", [5, 6])
def test_a_prompt_may_end_where_the_prefix_ends(within, prompt):
    """The prefix alone is a prompt, and tokens come one at a time or many at once from there."""
    pattern = P.Prefix(5) | within
    q, k, v = torch.randn(3, 1, 2, 14, 8).unbind()
    whole = foveal.attend(q, k, v, pattern)
    for max_length in (None, 14):
        cache = AttentionCache(pattern, 1, 2, 8, max_length)
        cache.prefill(k[:, :, :prompt], v[:, :, :prompt])
        new = slice(prompt, 10)
        assert_close(cache.extend(q[:, :, new], k[:, :, new], v[:, :, new]), whole[:, :, new])
        for at in range(10, 14):
            one = slice(at, at + 1)
            cache.append(k[:, :, one], v[:, :, one])
            assert_close(cache.attend(q[:, :, one]), whole[:, :, one])


def test_a_prefix_comes_in_one_call():
    """Tokens of the prefix read each other, so a chunk that ends within it is refused."""
    pattern = P.Prefix(5) | P.SlidingWindow(4)
    x = torch.randn(1, 2, 3, 8)
    cache = AttentionCache(pattern, 1, 2, 8).prefill(x, x)
    with pytest.raises(ValueError, match="the first 5 tokens must come in one call"):
        cache.extend(x, x, x)


def test_a_chunk_within_a_prefix_is_refused_in_words_of_prefill():
    """Of one token or several, on every way into a model, a token alone included."""
    sizes = {"num_tokens": 20, "dim": 16, "depth": 1, "heads": 2, "dim_head": 8}
    pattern = P.Prefix(5) | P.SlidingWindow(4)
    model = TransformerLM(**sizes, max_seq_len=32, pattern=pattern).eval()
    tokens = torch.randint(20, (2, 12))
    words = r"the first 5 tokens must come in one call, .* chunk, of at least 5 tokens"
    for chunk in (1, 2, 4):
        with pytest.raises(ValueError, match=words):
            model.prefill(tokens, chunk=chunk)
    for split in (0, 1, 4):
        cache = model.prefill(tokens[:, :split])[1] if split else model.make_cache(2)
        with pytest.raises(ValueError, match=words):
            model.step(tokens[:, split], cache)
    with pytest.raises(ValueError, match=words):
        model.generate(tokens[:, :3], 4)
    want = model(tokens)[:, -1]
    for chunk in (5, 6, 11):
        assert_close(model.prefill(tokens, chunk=chunk)[0], want, 1e-5)
