"""Decoding over a Pyramid: exact at every position, with a state that stays small."""

import pytest
import torch

from foveal import attend
from foveal import patterns as P
from foveal.caches import AttentionCache, PyramidCache, PyramidMemory
from foveal.ops import PyramidBias

CASES = [(q, n) for q in ("fine", "coarse") for n in ("adjacent", "sibling")]


def qkv(n, heads=4, kv_heads=2, m=None, seed=0):
    torch.manual_seed(seed)
    q = torch.randn(2, heads, n, 6, dtype=torch.float64)
    return q, *torch.randn(2, 2, kv_heads, m or n, 6, dtype=torch.float64)


@pytest.mark.parametrize(("queries", "neighbors"), CASES)
@pytest.mark.parametrize("block", [2, 4, 16])
def test_every_position_after_every_kind_of_prompt(queries, neighbors, block):
    """prefill + append + attend is the full attention; bounded or growing; with a bias."""
    n, pattern = 101, P.Pyramid(block, True, neighbors, queries)
    q, k, v = qkv(n)
    table = torch.randn(4 * block - 1, 4, dtype=torch.float64)
    bias = PyramidBias(table)
    full = attend(q, k, v, pattern, bias=bias)
    for prompt in (0, 1, block - 1, 2 * block, 37, n - 1):
        cache = PyramidCache(
            pattern, 2, 2, 6, n if prompt % 2 else None, heads=4, dtype=torch.float64
        )
        if prompt:
            cache.prefill(k[:, :, :prompt], v[:, :, :prompt], q[:, :, :prompt])
        rows = []
        for i in range(prompt, n):
            now = slice(i, i + 1)
            cache.append(k[:, :, now], v[:, :, now])
            rows.append(cache.attend(q[:, :, now], bias=bias))
        torch.testing.assert_close(torch.cat(rows, 2), full[:, :, prompt:], rtol=0, atol=1e-10)


@pytest.mark.parametrize("queries", ["fine", "coarse"])
def test_a_second_prompt_goes_on(queries):
    """Loading many tokens twice is loading them at once."""
    q, k, v = qkv(50)
    pattern = P.Pyramid(4, True, queries=queries)
    twice, once = (PyramidCache(pattern, 2, 2, 6, heads=4, dtype=torch.float64) for _ in "ab")
    for part in (slice(0, 21), slice(21, 50)):
        twice.prefill(k[:, :, part], v[:, :, part], q[:, :, part])
    once.prefill(k, v, q)
    assert twice.position == 50
    torch.testing.assert_close(
        twice.attend(q[:, :, -1:]), once.attend(q[:, :, -1:]), rtol=0, atol=1e-12
    )


def test_state_grows_with_the_logarithm():
    """Two blocks a level: a thousand times the context is less than four times the state."""
    pattern = P.Pyramid(16, causal=True)
    short, long = (PyramidCache(pattern, 1, 1, 8, n).num_bytes for n in (1 << 10, 1 << 20))
    assert long < 3.5 * short
    assert long < AttentionCache(P.Full(causal=True), 1, 1, 8, 1 << 12).num_bytes


def test_clone_goes_its_own_way():
    """A clone shares nothing with its origin."""
    q, k, v = qkv(20)
    cache = PyramidCache(P.Pyramid(4, True), 2, 2, 6, dtype=torch.float64)
    cache.prefill(k[:, :, :19], v[:, :, :19])
    twin = cache.clone()
    twin.append(v[:, :, :1], k[:, :, :1])
    cache.append(k[:, :, 19:], v[:, :, 19:])
    want = attend(q, k, v, P.Pyramid(4, True))[:, :, -1:]
    torch.testing.assert_close(cache.attend(q[:, :, -1:]), want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("neighbors", ["adjacent", "sibling"])
@pytest.mark.parametrize(("n", "m"), [(60, 60), (9, 70), (70, 9), (5, 1)])
def test_memory_read_by_one_query_at_a_time(neighbors, n, m):
    """Cross-attention token by token is the full cross-attention, padded and biased."""
    pattern = P.Pyramid(4, False, neighbors, "fine")
    q, k, v = qkv(n, m=m)
    mask = torch.ones(2, m, dtype=torch.bool)
    mask[0, m - m // 3 :] = False
    mask[1] = False  # a source without any real token
    bias = PyramidBias(torch.randn(15, 4, dtype=torch.float64))
    full = attend(q, k, v, pattern, key_mask=mask, bias=bias)
    memory = PyramidMemory(pattern, k, v, mask, max_queries=n)
    rows = [memory.attend(q[:, :, i : i + 1], i, bias=bias) for i in range(n)]
    torch.testing.assert_close(torch.cat(rows, 2), full, rtol=0, atol=1e-10)
    assert (full[1] == 0).all()
    assert memory.clone().num_bytes == memory.num_bytes


def test_wrong_arguments_are_named():
    """Errors say which argument, what it was, and what to use."""
    q, k, v = qkv(8)
    pattern = P.Pyramid(4, True)
    with pytest.raises(ValueError, match="causal Pyramid"):
        PyramidCache(P.Pyramid(4), 1, 1, 8)
    with pytest.raises(ValueError, match="use PyramidCache"):
        AttentionCache(pattern, 1, 1, 8)
    with pytest.raises(ValueError, match="kv_heads must be at least 1"):
        PyramidCache(pattern, 1, 0, 8)
    cache = PyramidCache(pattern, 2, 2, 6, 7, dtype=torch.float64)
    with pytest.raises(ValueError, match="at least one token"):
        cache.attend(q[:, :, :1])
    with pytest.raises(ValueError, match="max_length=7"):
        cache.prefill(k, v)
    with pytest.raises(ValueError, match="append takes one token"):
        cache.append(k, v)
    with pytest.raises(ValueError, match="k and v must be"):
        cache.append(k[:, :1, :1], v[:, :1, :1])
    cache.prefill(k[:, :, :3], v[:, :, :3])
    with pytest.raises(ValueError, match="multiple of kv_heads=2"):
        cache.attend(q[:, :3, :1])
    with pytest.raises(ValueError, match="needs q"):
        PyramidCache(P.Pyramid(4, True, queries="coarse"), 2, 2, 6, dtype=q.dtype).prefill(k, v)
    with pytest.raises(ValueError, match="queries='fine'"):
        PyramidMemory(P.Pyramid(4), k, v)
    with pytest.raises(ValueError, match="at least one token"):
        PyramidMemory(P.Pyramid(4, queries="fine"), k[:, :, :0], v[:, :, :0])
    with pytest.raises(ValueError, match="max_queries=8"):
        PyramidMemory(P.Pyramid(4, queries="fine"), k, v).attend(q[:, :, :1], 8)
