"""Blocks of far files: right bytes, few requests, and never more kept than was allowed."""

import os
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.data.blocks import BlockCache


class Far:
    """A file that counts what is asked of it."""

    def __init__(self, raw, name="a"):
        self.raw, self.name, self.size, self.asked = raw, name, len(raw), []

    def key(self):
        return self.name

    def fetch(self, ranges):
        self.asked.append(list(ranges))
        assert all(0 <= a < b <= self.size for a, b in ranges)
        return [self.raw[a:b] for a, b in ranges]


def read(cache, file, start, length):
    out = np.full(length, 7, np.uint8)
    cache.read_into(file, out, start)
    return out.tobytes()


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_range_is_right_and_the_cache_bounded(data):
    """Whatever was read before, of whatever sizes; no request asks for what is kept."""
    block = data.draw(st.integers(1, 40))
    most = data.draw(st.integers(block, 400))
    cache = BlockCache(most, block)
    files = [Far(os.urandom(data.draw(st.integers(1, 500))), name) for name in "ab"]
    for _ in range(data.draw(st.integers(1, 12))):
        file = data.draw(st.sampled_from(files))
        start = data.draw(st.integers(0, file.size))
        length = data.draw(st.integers(0, file.size - start))
        if data.draw(st.booleans()):
            cache.warm(file, [(start, length)])
        assert read(cache, file, start, length) == file.raw[start : start + length]
        assert len(cache) <= most
        file.asked.clear()
        if length and length <= most - 2 * block:
            read(cache, file, start, length)
            assert not file.asked


def test_neighbours_are_one_request_and_windows_one_call():
    """A run of blocks is fetched at once, and a warmed batch of windows together."""
    cache, file = BlockCache(1 << 20, 16), Far(bytes(range(256)) * 8)
    read(cache, file, 100, 200)
    assert file.asked == [[(96, 304)]]
    read(cache, file, 90, 250)  # only what is missing on both sides
    assert file.asked[1:] == [[(80, 96), (304, 352)]]
    file.asked.clear()
    cache.warm(file, [(1000, 5), (1500, 40), (1001, 2)])
    assert file.asked == [[(992, 1008), (1488, 1552)]]
    assert [read(cache, file, a, n) for a, n in ((1000, 5), (1500, 40))]
    assert len(file.asked) == 1


def test_the_longest_unread_goes_first():
    """A block that is read again stays; another version of a file is another file."""
    cache, file = BlockCache(30, 10), Far(bytes(100))
    for start in (0, 10, 20, 0, 30):
        read(cache, file, start, 10)
    file.asked.clear()
    read(cache, file, 0, 10)
    assert not file.asked
    read(cache, file, 10, 10)
    assert file.asked
    file.name, file.raw = "a, later", bytes([1]) * 100
    assert read(cache, file, 0, 10) == bytes([1]) * 10


def test_threads_read_at_once():
    """Eight threads read right bytes through a cache that is too small for them."""
    cache, file = BlockCache(200, 7), Far(os.urandom(3000))
    wrong = []

    def work(seed):
        numbers = np.random.default_rng(seed)
        for _ in range(100):
            start = int(numbers.integers(0, 2900))
            if read(cache, file, start, 100) != file.raw[start : start + 100]:
                wrong.append(start)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not wrong
    assert len(cache) <= 200


def test_sizes_are_checked():
    """A cache that holds no block is none."""
    with pytest.raises(ValueError, match="got most=5, block=10"):
        BlockCache(5, 10)
