"""Calls that are known after the first, and who sees how they are told."""

import contextlib

import torch

import foveal
from foveal import patterns as P
from foveal.ops.glance import LATEST

EMPTY = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 0, 1]])
PATTERNS = [
    P.Full(),
    P.Full(causal=True),
    P.SlidingWindow(9),
    P.BlockSparse(EMPTY, 16),  # queries without keys, and keys that nobody reads
    P.BlockSparse(torch.stack([EMPTY, 1 - EMPTY]), 16),
    P.Pyramid(4, causal=True),
    P.Halo((6, 8), 3, 1),
]
LENGTH = 48


def inputs(length=LENGTH, dtype=torch.float32, **options):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(2, n, length, 8, generator=g).to(dtype, **options) for n in (2, 1, 1)]


@contextlib.contextmanager
def glances():
    """Notes the calls that are computed as the latest of their pattern, without a key."""
    seen = []

    def watched(one):
        def look(*args):
            found = one(*args)
            seen.extend([True] * (found is not None))
            return found

        return look

    before = dict(LATEST)
    ours = {key: watched(one) for key, one in before.items()}
    LATEST.update(ours)
    try:
        yield seen
    finally:
        LATEST.update({key: one for key, one in before.items() if LATEST[key] is ours[key]})


PATTERN = P.SlidingWindow(9)


def attend(*tensors, **options):
    return foveal.attend(*tensors, PATTERN, **options)


def glanced(*tensors, pattern=PATTERN, **options):
    """Whether the call is told from others without a key."""
    with glances() as seen:
        foveal.attend(*tensors, pattern, **options)
    return bool(seen)
