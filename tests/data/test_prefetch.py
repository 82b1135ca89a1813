"""A thread that reads ahead changes no bit, tells its errors, and ends."""

import gc
import os
import threading

import pytest
import torch
from test_stream import BATCH, SEED, SOURCES, digest

from foveal.data.prefetch import THREAD, Prefetched
from foveal.data.stream import Stream
from foveal.recipes.config import config_from_dict
from foveal.recipes.kind import batches_ahead


def threads():
    return [one for one in threading.enumerate() if one.name == THREAD]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("name", SOURCES)
def test_it_deals_what_the_stream_deals(name, world, tmp_path):
    """To the bit, on every rank, while others draw from the generators of the process."""
    source = SOURCES[name](tmp_path)
    if getattr(source, "_transform", None):
        pytest.skip("a function of the user's, which recipes never call in a thread")
    for rank in range(world):
        plain = Stream(source, BATCH, SEED, rank, world)
        ahead = Prefetched(Stream(source, BATCH, SEED, rank, world), 3)
        for _ in range(7):
            torch.manual_seed(0)
            assert digest(ahead.next()) == digest(plain.next())
            assert ahead.state_dict() == plain.state_dict()
        ahead.close()


@pytest.mark.parametrize("resumed", ["ahead", "plain"])
def test_the_state_is_what_was_consumed(resumed, tmp_path):
    """A state taken with batches read ahead goes on behind the last one consumed, either way."""
    source = SOURCES["images"](tmp_path)
    ahead = Prefetched(Stream(source, BATCH, SEED), 4)
    for _ in range(3):
        ahead.next()
    state = ahead.state_dict()
    assert state["position"] == 3 * BATCH
    other = Stream(source, BATCH, SEED)
    other = other if resumed == "plain" else Prefetched(other, 1)
    other.load_state_dict(state)
    assert [digest(other.next()) for _ in range(4)] == [digest(ahead.next()) for _ in range(4)]
    ahead.load_state_dict(state)  # back again, whatever lies ready
    again = Stream(source, BATCH, SEED)
    again.load_state_dict(state)
    assert digest(ahead.next()) == digest(again.next())


class Counted:
    """Squares, and how often each was read; some cannot be."""

    def __init__(self, bad=()):
        self.bad, self.read_at, self.ready = bad, [], threading.Event()

    def __len__(self):
        return 1000

    def read(self, indices):
        self.read_at += indices.tolist()
        self.ready.set()
        if len(self.read_at) // len(indices) in self.bad:
            raise OSError(f"no batch {len(self.read_at) // len(indices)}")
        return indices**2


def test_no_more_is_read_than_was_asked_for():
    """With n ahead, n batches and those consumed are read at most, and each rank's share alone."""
    shares = []
    for rank in range(4):
        source = Counted()
        stream = Prefetched(Stream(source, 5, 0, rank, 4), 2)
        for _ in range(10):
            stream.next()
        stream.close()
        assert 10 * 5 <= len(source.read_at) <= 12 * 5
        shares.append(set(source.read_at[:50]))
    assert len(set.union(*shares)) == 200


def test_an_error_comes_where_its_batch_would_have():
    """And not before; afterwards the stream goes on as it would without a thread."""
    plain, ahead = Stream(Counted({3, 5}), 4), Prefetched(Stream(Counted({3, 5}), 4), 4)
    for number in range(1, 8):
        found = []
        for stream in (plain, ahead):
            try:
                found.append(stream.next().tolist())
            except OSError as error:
                found.append(str(error))
        if number <= 3:  # the source counts what is read, and ahead some is read again
            assert found[0] == found[1], number
        assert plain.state_dict() == ahead.state_dict()
        if number == 3:
            assert found[1] == "no batch 3"
            assert not threads()
            break


@pytest.mark.parametrize("end", ["close", "forget", "error", "back"])
def test_the_thread_ends(end):
    """With `close`, with its object, with an error, and when the position is set."""
    stream = Prefetched(Stream(Counted({2} if end == "error" else ()), 4), 2)
    assert not threads()  # it begins with the first batch
    stream.next()
    if end == "close":
        stream.close()
        stream.close()
    elif end == "back":
        stream.load_state_dict(stream.state_dict())
    elif end == "error":
        with pytest.raises(OSError, match="no batch 2"):
            stream.next()
    else:
        del stream
        gc.collect()
    assert not threads()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_reads_on():
    """It lacks its parent's thread, and goes on behind what was consumed; so does the parent."""
    source = Counted()
    stream, plain = Prefetched(Stream(source, 4), 2), Stream(Counted(), 4)
    for _ in range(2):
        stream.next()
        plain.next()
    wanted = [plain.next() for _ in range(3)]
    child = os.fork()
    if not child:
        same = [torch.equal(stream.next(), one) for one in wanted]
        stream.close()
        os._exit(0 if all(same) and not threads() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert all(torch.equal(stream.next(), one) for one in wanted)
    stream.close()


def test_how_many_ahead():
    """At least one."""
    with pytest.raises(ValueError, match="ahead must be at least 1, got ahead=0"):
        Prefetched(Stream(Counted(), 4), 0)


def test_the_setting():
    """None on a CPU unless asked for; a function of the user's is never called in a thread."""

    def ahead(data=None, **training):
        table = {"task": "images", "model": {"name": "SepViT"}, "data": data or {}}
        settings = {"steps": 1, "device": "cpu", **training}
        return batches_ahead(config_from_dict({**table, "training": settings}, "the test"))

    function = {"transform": "somebodys.module:function"}
    assert [ahead(), ahead(prefetch=0), ahead(prefetch=3), ahead(function)] == [0, 0, 3, 0]
    with pytest.raises(ValueError, match=r"prefetch must be 0 with data\.transform, got 2"):
        ahead(function, prefetch=2)
