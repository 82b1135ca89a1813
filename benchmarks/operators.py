"""What attend and its kin do beside a pattern, each beside what one would do without it.

python benchmarks/run.py selected-16384 table-window table-near table-swin

The file is not called operator.py, which would hide a module of Python from the scripts beside it.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from foveal.bench import Case
from foveal.bench.attention import DIM, HEADS, flops, job, tensors
from foveal.bench.case import Job
from foveal.ops import TableBias, alibi, attend, attend_selected
from foveal.ops.native import plans
from foveal.patterns import Documents, Full, Halo, Neighborhood, Pattern, SlidingWindow

LENGTH, BLOCK, COUNT = 16_384, 64, 16


def chosen_blocks(length: int, block: int, count: int, heads: int, device: str) -> Tensor:
    """Each tile's own block, and others of its past: (1, heads, tiles, count)."""
    tiles = length // block
    own = torch.arange(tiles, device=device)
    noise = torch.Generator(device).manual_seed(0)
    scores = torch.rand(1, heads, tiles, tiles, generator=noise, device=device)
    scores = scores.masked_fill(own > own[:, None], -1.0).masked_fill(own == own[:, None], 2.0)
    best = scores.topk(min(count, tiles))
    return best.indices.masked_fill(best.values < 0, -1)


def selected(contender: str, run: str, device: str) -> Job:
    """16 blocks of 64 keys for each 64 queries, beside all of the past."""
    qkv = tensors(1, LENGTH, "float32", run, device)
    if contender == "SDPA":
        return job(lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True), qkv)
    blocks = chosen_blocks(LENGTH, BLOCK, COUNT, HEADS, device)
    return job(lambda q, k, v: attend_selected(q, k, v, blocks, BLOCK, impl=contender), qkv)


def _pairs() -> int:
    """Pairs of a head: the first tiles have fewer than COUNT blocks."""
    tiles = torch.arange(LENGTH // BLOCK)
    return int((BLOCK * BLOCK * tiles.clamp(max=COUNT - 1) + BLOCK * (BLOCK + 1) // 2).sum())


def shaped(pattern: Pattern, length: int, word: str) -> Case:
    """Learned sinks and a soft-cap, each beside the same call without it."""

    def make(contender: str, run: str, device: str) -> Job:
        qkv = tensors(1, length, "float32", run, device)
        sinks = torch.zeros(HEADS, device=device, requires_grad=run == "training")
        options = {"sinks": {"sinks": sinks}, "softcap": {"softcap": 50.0}}.get(contender, {})
        return job(lambda q, k, v: attend(q, k, v, pattern, impl="native", **options), qkv)

    title = f"native with sinks and with a soft-cap, {word}; 8 heads of 64, float32"
    contenders = ("sinks", "softcap", "plain")
    work = flops(pattern, length, 1)
    return Case(f"shaped-{length}", title, contenders, make, flops=work, devices=("cpu",))


TABLES = {
    "table-window": ("a window of 256 at 8,192 tokens", SlidingWindow(256), 8192, 511),
    "table-near": ("7 x 7 neighbours at 64 x 64", Neighborhood(64, 7), 4096, 169),
    "table-swin": ("windows of 8 x 8 at 64 x 64", Halo(64, 8, 0), 4096, 225),
}


def biased(name: str) -> Callable[[str, str, str], Job]:
    """A call with a learned table, or alibi, beside the same call without."""
    _, pattern, length, rows = TABLES[name]

    def make(contender: str, run: str, device: str) -> Job:
        given = tensors(1, length, "float32", run, device)
        if contender == "table":
            table = torch.randn(rows, HEADS, device=device, requires_grad=run == "training")
            return job(
                lambda q, k, v, t: attend(q, k, v, pattern, bias=TableBias(t), impl="native"),
                [*given, table],
            )
        bias = alibi(HEADS) if contender == "alibi" else None
        return job(lambda q, k, v: attend(q, k, v, pattern, bias=bias, impl="native"), given)

    return make


def tail(contender: str, run: str, device: str) -> Job:
    """The last 64 queries of a window of 256 over 16,384 keys, beside SDPA under their mask."""
    qkv, window = tensors(1, LENGTH, "float32", run, device), SlidingWindow(256)
    if contender == "SDPA":
        places = torch.arange(LENGTH, device=device)
        mask = window.allows(places[-BLOCK:, None], places)
        return job(lambda q, k, v: scaled_dot_product_attention(_last(q), k, v, mask), qkv, BLOCK)
    options = {"q_offset": -1, "impl": contender}
    return job(lambda q, k, v: attend(_last(q), k, v, window, **options), qkv, BLOCK)


def _last(q: Tensor) -> Tensor:
    return q[:, :, -BLOCK:]


DOCUMENTS, TOKENS = 32, 256


def packed(contender: str, run: str, device: str) -> Job:
    """32 documents of 256 tokens in one row, beside the batch of 32."""
    impl, way = contender.split()
    pattern: Pattern = Full(causal=True)
    if way == "batch":
        given = tensors(DOCUMENTS, TOKENS, "float32", run, device)
    else:
        given = tensors(1, DOCUMENTS * TOKENS, "float32", run, device)
        pattern = Documents([TOKENS] * DOCUMENTS) & pattern
    return job(lambda q, k, v: attend(q, k, v, pattern, impl=impl), given)


def fresh_pack(contender: str, run: str, device: str) -> Job:
    """The plan of 32 documents of new random lengths in 8,192 tokens, as the kernel takes it."""
    draw = random.Random(0)
    total = DOCUMENTS * TOKENS
    within = {"causal": Full(causal=True), "window": SlidingWindow(256)}[contender]

    def plan() -> None:
        cuts = sorted(draw.sample(range(1, total), DOCUMENTS - 1))
        lengths = [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]
        plans.plan(Documents(lengths) & within, total, False)

    return plan


CASES = [
    Case(
        "tail-16384",
        "the last 64 queries of a window of 256 over 16,384 keys; 8 heads of 64, float32",
        ("native", "tiled", "SDPA"),
        tail,
        flops={
            "forward": 4.0 * BLOCK * 256 * HEADS * DIM,
            "training": 14.0 * BLOCK * 256 * HEADS * DIM,
        },
    ),
    Case(
        "documents-8192",
        "32 documents of 256 tokens in a row, and in a batch; causal, 8 heads of 64, float32",
        ("native packed", "native batch", "tiled packed", "tiled batch"),
        packed,
        flops=flops(Documents([TOKENS] * DOCUMENTS) & Full(causal=True), DOCUMENTS * TOKENS, 1),
        devices=("cpu",),
        seconds=1.0,
    ),
    Case(
        "fresh-pack",
        "a plan of 32 documents of new random lengths in 8,192 tokens",
        ("causal", "window"),
        fresh_pack,
        runs=("forward",),
        devices=("cpu",),
        seconds=1.0,
    ),
    shaped(SlidingWindow(256), 8192, "a window of 256 over 8,192 tokens"),
    shaped(Neighborhood((64, 64), 7), 4096, "7 x 7 pixels of 64 x 64"),
    *(
        Case(
            name,
            f"attend over {title}, with a learned table and without; 8 heads of 64, float32",
            ("table", "alibi", "plain"),
            biased(name),
            flops=flops(pattern, length, 1),
            seconds=1.0,
        )
        for name, (title, pattern, length, _) in TABLES.items()
    ),
    Case(
        "selected-16384",
        "attend_selected, 16 blocks of 64 for each 64 of 16,384 queries; 8 heads of 64, float32",
        ("native", "tiled", "SDPA"),
        selected,
        flops={
            "forward": 4.0 * _pairs() * HEADS * DIM,
            "training": 14.0 * _pairs() * HEADS * DIM,
        },
        seconds=40.0,
    ),
]
