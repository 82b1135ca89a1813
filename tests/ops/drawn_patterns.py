"""Patterns drawn at random, with the number of keys that suits them."""

from __future__ import annotations

import math
import random

import torch

from foveal import patterns as P


def image_pattern(draw: random.Random, size: tuple[int, int]) -> P.Pattern:
    """A pattern on an image of this size."""
    odd = (draw.choice((1, 3, 5)), draw.choice((3, 5, 7)))
    kinds = {
        "halo": lambda: P.Halo(size, (draw.randint(1, 6), draw.randint(1, 6)), draw.randint(0, 3)),
        "near": lambda: P.Neighborhood(size, odd, draw.choice((1, 1, 2))),
        "corner": lambda: P.Neighborhood(size, draw.randint(1, 6), causal="corner"),
        "raster": lambda: P.Neighborhood(size, odd, causal="raster"),
        "wrap": lambda: P.Neighborhood(size, odd, causal="raster", border="wrap"),
        "shift": lambda: P.Neighborhood(
            size, min(3, *(n - 1 + n % 2 for n in size)), 1, None, "shift"
        ),
        "axial": lambda: P.Axial(size, draw.choice(("row", "column")), draw.random() < 0.5),
        "wrapped": lambda: P.Axial(size, draw.choice(("row", "column")), True, True),
    }
    return kinds[draw.choice(list(kinds))]()


def layout_pattern(draw: random.Random, length: int, heads: int | None) -> P.Pattern:
    """Random blocks, with rows and columns that are empty; one layout, or one for each head."""
    block = draw.choice((5, 16, 30))
    count = -(-length // block)
    torch.manual_seed(draw.randrange(1 << 30))
    shape = (count, count) if heads is None else (heads, count, count)
    return P.BlockSparse(torch.rand(shape) < 0.5, block, draw.random() < 0.3)


def simple_pattern(draw: random.Random, length: int, heads: int | None) -> P.Pattern:
    """A pattern for any sequence."""
    coin = draw.random() < 0.5
    kinds = {
        "full": lambda: P.Full(coin),
        "window": lambda: P.SlidingWindow(draw.randint(1, 80), coin),
        "blocks": lambda: P.Blocks(draw.randint(1, 50), coin, draw.randint(0, 2)),
        "strided": lambda: P.Strided(draw.randint(1, 30), coin),
        "fixed": lambda: P.Fixed(*(lambda n: (n, draw.randint(1, n)))(draw.randint(1, 30)), coin),
        "prefix": lambda: (
            P.Prefix(draw.randint(1, 40)) | P.SlidingWindow(draw.randint(1, 40), coin)
        ),
        "layout": lambda: layout_pattern(draw, length, heads if coin else None),
    }
    return kinds[draw.choice(list(kinds))]()


def grid_pattern(draw: random.Random) -> tuple[P.Pattern, int]:
    """A pattern over one to three axes: strides, shifts, even windows, and causality by axis."""
    sides = draw.choice((1, 2, 3, 3, 3))
    size = tuple(draw.randint(1, (60, 12, 7)[sides - 1]) for _ in range(sides))
    causal = tuple(draw.random() < 0.4 for _ in size)
    kernel = tuple(draw.randint(1, min(5, side)) for side in size)
    dilation = tuple(draw.randint(1, side // one) for side, one in zip(size, kernel, strict=True))
    stride = tuple(draw.randint(1, one) for one in kernel)
    shift = tuple(draw.randrange(one) for one in stride)
    block = tuple(draw.randint(1, side) for side in size)
    border = draw.choice(("clip", "shift"))
    kinds = {
        "near": lambda: P.Neighborhood(size, kernel, dilation, causal, border),
        "strided": lambda: P.Neighborhood(size, kernel, 1, causal, border, stride, shift),
        "halo": lambda: P.Halo(size, block, draw.randint(0, 3), causal=causal),
        "axial": lambda: P.Axial(size, draw.randrange(sides), causal),
        "blocks": lambda: P.Blocks(
            block, causal, draw.randint(0, 1), size, tuple(draw.randrange(one) for one in block)
        ),
    }
    pattern = kinds[draw.choice(list(kinds))]()
    cut = draw.choice((0, 0, draw.randrange(size[-1])))
    return pattern, max(1, math.prod(size) - cut)


def packed_pattern(draw: random.Random) -> tuple[P.Pattern, int]:
    """Documents of 0, 1, prime and other lengths, and the number of keys of their row."""
    lengths = [
        draw.choice((0, 1, 1, 2, 17, 31, 61, draw.randint(1, 100)))
        for _ in range(draw.randint(1, 6))
    ]
    total = max(1, sum(lengths))
    lengths += [] if sum(lengths) else [1]
    inner = simple_pattern(draw, total, None)
    while isinstance(inner, P.BlockSparse):  # of which a document may be longer
        inner = simple_pattern(draw, total, None)
    kind = draw.random()
    if kind < 0.15:
        return P.Documents(lengths), total + draw.choice((0, 5))
    if kind < 0.5:
        return P.Documents(lengths) & inner, total + draw.choice((0, 5))
    queries = [draw.randint(0, length) for length in lengths] if kind > 0.8 else None
    return P.Packed(inner, lengths, queries), total


def generated_pattern(draw: random.Random) -> tuple[P.Pattern, int]:
    """Maps of growing sizes, or a noised text beside the clean one."""
    if draw.random() < 0.5:
        sides = tuple(
            draw.choice((side, (side, draw.randint(1, 8)))) for side in (1, 2, draw.randint(1, 9))
        )
        pattern = P.NextScale(sides)
        return pattern, pattern.ends[-1] - draw.choice((0, 0, 1))
    tokens = draw.choice((1, draw.randint(1, 90)))
    return P.BlockDiffusion(draw.randint(1, 20), tokens), 2 * tokens


def any_pattern(draw: random.Random, heads: int) -> tuple[P.Pattern, int]:
    """(pattern, number of keys), with nestings three deep."""
    kinds = ("simple", "simple", "image", "image", "text", "nested", "pyramid", "down")
    kind = draw.choice((*kinds, "grid", "grid", "documents", "documents", "generated"))
    if kind == "generated":
        return generated_pattern(draw)
    if kind == "grid":
        return grid_pattern(draw)
    if kind == "documents":
        return packed_pattern(draw)
    size = (draw.randint(2, 17), draw.randint(2, 17))
    pixels = size[0] * size[1]
    if kind == "down":
        block = (draw.choice((2, 4)), draw.choice((2, 6)))
        return P.Halo(size, block, draw.randint(0, 3), 2), pixels
    if kind == "pyramid":
        # the oracle is slow: its time grows with the square
        length, block = draw.randint(1, 70), draw.choice((2, 4, 8))
        near = draw.choice(("adjacent", "sibling"))
        return P.Pyramid(block, draw.random() < 0.5, near, draw.choice(("coarse", "fine"))), length
    cut = draw.choice((0, 0, draw.randrange(size[1])))
    if kind == "image":
        return image_pattern(draw, size), pixels - cut
    if kind == "text":
        text = draw.choice((0, 1, draw.randint(2, 90)))
        image = image_pattern(draw, size)
        if draw.random() < 0.3:
            image = image | image_pattern(draw, size)
        whole = P.TextImage(text, image, draw.random() < 0.6)
        return whole, max(1, text + pixels - cut)
    if kind == "simple":
        length = draw.choice((1, 2, draw.randint(3, 70), draw.randint(60, 300)))
        return simple_pattern(draw, length, heads), length
    length = pixels - cut
    parts = [
        draw.choice((image_pattern(draw, size), simple_pattern(draw, length, heads)))
        for _ in range(3)
    ]
    left = parts[0] | parts[1] if draw.random() < 0.5 else parts[0] & parts[1]
    return (left | parts[2] if draw.random() < 0.5 else left & parts[2]), length
