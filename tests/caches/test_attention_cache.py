"""AttentionCache: exact for every causal pattern, and no bigger than the pattern's reach."""

import pytest
import torch
from torch.nn.functional import softmax

from foveal import patterns as P
from foveal.caches import AttentionCache
from foveal.caches.fixed import FixedCache

PATTERNS = [
    P.Full(causal=True),
    P.SlidingWindow(9),
    P.SlidingWindow(1),
    P.SlidingWindow(500),
    P.Blocks(8, causal=True),
    P.Blocks(8, causal=True, lookback=2),
    P.Axial((7, 9), causal=True),
    P.Axial((7, 9), "column", causal=True),
    P.Axial((7, 9), causal=True, wrap=True),
    P.Neighborhood((7, 9), 3, causal="raster"),
    P.Neighborhood((7, 9), 3, 2, causal="corner"),
    P.Strided(8),
    P.Fixed(8, 2),
    P.TextImage(14, P.Neighborhood((7, 7), 3, causal="raster")),
    P.TextImage(14, P.Axial((7, 7), causal=True)),
    P.Union(P.SlidingWindow(4), P.Axial((7, 9), "column", causal=True)),
    P.Intersection(P.SlidingWindow(20), P.Strided(5)),
    P.BlockSparse.fixed(64, block_size=8, attention="unidirectional"),
    P.BlockSparse.bigbird(64, block_size=8, attention="unidirectional", seed=3),
]
LENGTH = 63


def oracle(q, k, v, pattern):
    """Dense attention in float64, with repeated keys; rows without keys give zeros."""
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    mask = pattern.mask(q.shape[2])
    scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf)
    return softmax(scores, -1).nan_to_num(0.0) @ v


def inputs(length, heads=4, kv_heads=2, batch=2, head_dim=6):
    torch.manual_seed(0)
    sizes = (heads, kv_heads, kv_heads)
    return [torch.randn(batch, h, length, head_dim, dtype=torch.float64) for h in sizes]


def decode(q, k, v, pattern, split, max_length):
    """Outputs of the tokens from `split` on, the earlier ones being loaded at once."""
    cache = AttentionCache(
        pattern, k.shape[0], k.shape[1], k.shape[3], max_length, dtype=torch.float64
    )
    if split:
        cache = cache.prefill(k[:, :, :split], v[:, :, :split])
    outs = []
    for i in range(split, q.shape[2]):
        one = slice(i, i + 1)
        cache = cache.append(k[:, :, one], v[:, :, one])
        outs.append(cache.attend(q[:, :, one]))
    return torch.cat(outs, 2)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("max_length", [None, LENGTH])
def test_equals_dense_attention_from_any_split(pattern, max_length):
    """Prefill plus appends reads exactly the allowed keys, grouped-query heads included."""
    q, k, v = inputs(LENGTH)
    expected = oracle(q, k, v, pattern)
    for split in (0, 1, 2, 8, 31, 62):
        out = decode(q, k, v, pattern, split, max_length)
        torch.testing.assert_close(out, expected[:, :, split:], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_heads_with_layouts_of_their_own(kv_heads):
    """Each head reads the keys of its own layout; a head without keys gives zeros."""
    torch.manual_seed(1)
    layout = torch.rand(4, 8, 8) < 0.4
    layout[2] = False
    pattern = P.BlockSparse(layout, 8, causal=True)
    q, k, v = inputs(LENGTH, kv_heads=kv_heads)
    expected = oracle(q, k, v, pattern)
    for split in (0, 5, 40):
        out = decode(q, k, v, pattern, split, None)
        torch.testing.assert_close(out, expected[:, :, split:], rtol=0, atol=1e-10)
    assert (out[:, 2] == 0).all()


def test_token_that_reads_nothing_gives_zeros():
    """An empty row of the pattern is zeros, never NaN."""
    layout = torch.tensor([[True, False], [False, False]])
    pattern = P.BlockSparse(layout, 4, causal=True)
    q, k, v = inputs(8)
    out = decode(q, k, v, pattern, 0, None)
    assert (out[:, :, 4:] == 0).all()
    assert out[:, :, :4].abs().min() > 0


@pytest.mark.parametrize("pattern", [P.SlidingWindow(64), P.Blocks(64, causal=True)], ids=str)
def test_bounded_at_position_100_000(pattern):
    """A window of 64 costs no more memory at position 100,000 than at 200, prefill included."""

    def size(position):
        cache = AttentionCache(pattern, 1, 2, 4)
        many = torch.zeros(1, 2, position, 4)
        return cache.prefill(many, many).append(many[:, :, :1], many[:, :, :1]).num_bytes

    assert size(100_000) <= size(200)


@pytest.mark.parametrize(
    "pattern",
    [
        P.Fixed(16, 2),
        P.Blocks(16, causal=True),
        P.Axial((64, 16), causal=True),
        P.Union(P.SlidingWindow(5), P.Blocks(16, causal=True)),
    ],
    ids=str,
)
def test_holds_little_more_than_keeps(pattern):
    """What the pattern will never read again leaves the cache, token by token and at prefill."""
    length = 1000
    needed = max(len(pattern.keeps(i)) + 1 for i in range(length))
    token = torch.zeros(1, 1, 1, 4)
    cache = AttentionCache(pattern, 1, 1, 4)
    for _ in range(length):
        cache = cache.append(token, token)
    whole = torch.zeros(1, 1, length, 4)
    loaded = AttentionCache(pattern, 1, 1, 4).prefill(whole, whole)
    places = max(64, 3 * needed) * 2 * 4 * 4
    assert cache.num_bytes <= places
    assert loaded.num_bytes <= places
    assert cache.position == loaded.position == length


def test_growing_and_known_lengths():
    """Without a length the buffer doubles; with one it is allocated once, and never exceeded."""
    token = torch.zeros(1, 1, 1, 4)
    growing = AttentionCache(P.Full(causal=True), 1, 1, 4)
    sizes = {growing.append(token, token).num_bytes for _ in range(1000)}
    assert len(sizes) <= 6
    assert max(sizes) <= 2 * 1024 * 2 * 4 * 4
    fixed = AttentionCache(P.Full(causal=True), 1, 1, 4, max_length=100)
    assert fixed.num_bytes == 100 * 2 * 4 * 4
    assert AttentionCache(P.SlidingWindow(500), 1, 1, 4, max_length=10).num_bytes == 10 * 32
    with pytest.raises(ValueError, match="max_length=100"):
        fixed.prefill(torch.zeros(1, 1, 101, 4), torch.zeros(1, 1, 101, 4))


@pytest.mark.parametrize("pattern", [P.Full(causal=True), P.SlidingWindow(4)], ids=str)
def test_clone_shares_nothing(pattern):
    """Two continuations of one cache do not disturb each other."""
    q, k, v = inputs(12)
    cache = AttentionCache(pattern, 2, 2, 6, dtype=torch.float64).prefill(k[:, :, :8], v[:, :, :8])
    twin = cache.clone()
    twin.append(-k[:, :, 9:10], -v[:, :, 9:10])
    cache = cache.append(k[:, :, 8:9], v[:, :, 8:9])
    expected = oracle(q, k, v, pattern)[:, :, 8:9]
    torch.testing.assert_close(cache.attend(q[:, :, 8:9]), expected)
    assert (cache.position, twin.position) == (9, 9)


def test_stores_the_dtype_it_was_given():
    """A bfloat16 cache takes float32 keys and gives back the dtype of the query."""
    cache = AttentionCache(P.SlidingWindow(8), 1, 1, 4, dtype=torch.bfloat16)
    x = torch.randn(1, 1, 20, 4)
    cache = cache.prefill(x, x)
    assert cache.num_bytes == 2 * 8 * 4 * 2
    assert cache.attend(x[:, :, -1:]).dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pattern": P.Full()}, "causal"),
        ({"batch": 0}, "batch must be at least 1, got batch=0"),
        ({"max_length": 0}, "max_length"),
    ],
)
def test_nonsense_sizes(change, message):
    """Each impossible cache is refused by the name of what is wrong."""
    options = {"pattern": P.SlidingWindow(4), "batch": 1, "kv_heads": 1, "head_dim": 4, **change}
    with pytest.raises(ValueError, match=message):
        AttentionCache(**options)


def test_nonsense_tokens():
    """Tokens of other sizes, several at once, and queries before keys are refused."""
    cache = AttentionCache(P.SlidingWindow(4), 1, 2, 4)
    with pytest.raises(ValueError, match="at least one token"):
        cache.attend(torch.zeros(1, 2, 1, 4))
    with pytest.raises(ValueError, match="append takes one token"):
        cache.append(torch.zeros(1, 2, 2, 4), torch.zeros(1, 2, 2, 4))
    with pytest.raises(ValueError, match="kv_heads"):
        cache.append(torch.zeros(1, 3, 1, 4), torch.zeros(1, 3, 1, 4))
    cache.append(torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 1, 4))
    with pytest.raises(ValueError, match="multiple of kv_heads"):
        cache.attend(torch.zeros(1, 3, 1, 4))


@pytest.mark.parametrize("pattern", [P.SlidingWindow(3), P.Strided(4)], ids=repr)
@pytest.mark.parametrize("count", [1, 2])
def test_fixed_with_sinks(pattern, count):
    """At fixed addresses, tokens one by one or several: by the formula, a sink in each sum."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, heads, 12, 8, dtype=torch.float64) for heads in (4, 2, 2))
    sinks, place = torch.randn(4, dtype=torch.float64), torch.tensor(6)
    begun = AttentionCache(pattern, 2, 2, 8, dtype=torch.float64).prefill(k[:, :, :6], v[:, :, :6])
    fixed = FixedCache(begun, 12, place, {})
    logits = torch.tanh(q @ k.repeat_interleave(2, 1).mT / 8**0.5 / 3) * 3
    weights = logits.masked_fill(~pattern.mask(12), -torch.inf).exp()
    total = weights.sum(-1, keepdim=True) + sinks.exp()[:, None, None]
    want = weights / total @ v.repeat_interleave(2, 1)
    for first in range(6, 12, count):
        part = slice(first, first + count)
        own = (x[:, :, part] for x in (q, k, v))
        out = fixed.extend(*own, sinks=sinks, softcap=3.0)
        torch.testing.assert_close(out, want[:, :, part])
        place += count
