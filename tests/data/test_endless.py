"""Logical readers: one order for any number of processes, resumed exactly, never re-dealt."""

import itertools
import json

import pytest

from foveal.data.endless import EndlessStream, Readers, how_many, stream_of
from foveal.data.prefetch import Prefetched


class Numbers:
    """Readers of so many numbers each: reader r gives (r, 0), (r, 1), ..."""

    def __init__(self, lengths, endless=False):
        self.opened = []
        self.lengths = lengths

        def start(reader):
            self.opened.append(reader)
            items = itertools.count() if endless else range(lengths[reader])
            return ((reader, item) for item in items)

        self.readers = Readers(start, len(lengths), "numbers")

    def batch(self, items, draw):
        assert draw.places.tolist() == draw.indices.tolist()
        return items


def dealt(lengths, batch, world, steps, state=None):
    """What all processes get together, step by step, and the states behind."""
    streams = [EndlessStream(Numbers(lengths), batch // world, 5, r, world) for r in range(world)]
    for stream in streams if state else ():
        stream.load_state_dict(json.loads(json.dumps(state)))
    # processes take the examples by turns
    found = [
        [*itertools.chain(*zip(*(s.next() for s in streams), strict=True))] for _ in range(steps)
    ]
    states = [stream.state_dict() for stream in streams]
    assert all(one == states[0] for one in states)
    return found, states[0], streams


@pytest.mark.parametrize("lengths", [[7] * 8, [3, 9, 1, 5], [11], [4, 4, 4, 4, 4, 4]])
@pytest.mark.parametrize("batch", [4, 8])
def test_any_number_of_processes_deals_what_one_would(lengths, batch):
    """1, 2 and 4 processes, resumed on any other number, over ends of readers too."""
    wanted, _, _ = dealt(lengths, batch, 1, 12)
    for world in (1, 2, 4):
        first, state, _ = dealt(lengths, batch, world, 5)
        assert first == wanted[:5]
        assert state["position"] == 5 * batch
        for after in (1, 2, 4):
            assert dealt(lengths, batch, after, 7, state)[0] == wanted[5:]
    for place, (reader, item) in enumerate(itertools.chain(*wanted)):
        assert reader == place % len(lengths)
        assert item == place // len(lengths) % lengths[reader]


@pytest.mark.parametrize(("readers", "batch"), [(8, 8), (16, 8), (4, 8), (64, 4), (12, 20)])
def test_each_process_reads_only_its_share(readers, batch):
    """Where processes divide the readers, each opens its own alone, whatever the batch."""
    _, _, streams = dealt([1000] * readers, batch, 4, 32)
    opened = [set(stream.source.opened) for stream in streams]
    assert sum(map(len, opened)) == len(set.union(*opened)) == readers
    for stream in streams:
        assert sum(stream.source.readers.taken.values()) == 32 * batch // 4


def test_the_state_says_what_each_reader_gave():
    """The position is the number of consumed items of every reader."""
    stream = EndlessStream(Numbers([50] * 5), 3)
    given = [0] * 5
    for _ in range(11):
        for reader, _ in stream.next():
            given[reader] += 1
        assert stream.source.readers.consumed(stream.position) == given


def test_prefetch_changes_nothing():
    """A stream that is read ahead has the state of what was consumed."""
    plain = EndlessStream(Numbers([6] * 4), 4)
    ahead = Prefetched(EndlessStream(Numbers([6] * 4), 4), 3)
    for _ in range(20):
        assert ahead.next() == plain.next()
        assert ahead.state_dict() == plain.state_dict()
    ahead.close()


def test_many_passes_are_not_read_again():
    """A resumed reader whose pass has 10 items reads one of them, and no more than it must."""
    stream = EndlessStream(Numbers([10]), 1)
    stream.load_state_dict({"position": 1_000_003, "readers": 1, "seed": 0})
    assert stream.next() == [(0, 3)]
    assert stream.source.readers.taken[0] <= 20


def test_faults_are_named():
    """A reader without items, another number of readers, another seed, an error in a reader."""
    stream = EndlessStream(Numbers([3, 0, 3]), 3)
    with pytest.raises(
        ValueError, match=r"reader 2 of 3 of numbers stopped at item 0: it has no items"
    ):
        stream.next()
    with pytest.raises(ValueError, match="taken with readers=4, this run has readers=3"):
        stream.load_state_dict({"position": 0, "readers": 4, "seed": 0})
    with pytest.raises(ValueError, match="taken with seed=1, this run has seed=0"):
        stream.load_state_dict({"position": 0, "readers": 3, "seed": 1})
    with pytest.raises(ValueError, match="taken with readers=None"):
        stream.load_state_dict({"position": 0, "seed": 0, "num_items": 9})
    with pytest.raises(ValueError, match="count must be at least 1"):
        Readers(iter, 0, "none")


def test_a_reader_that_breaks_off_is_named():
    """With its item; whoever asks again reads it again, and goes on."""
    broken = [True]

    def start(reader):
        for item in range(9):
            if item == 2 and broken:
                broken.clear()
                raise OSError("connection lost")
            yield item

    readers = Readers(start, 2, "far")
    assert readers.at(range(4)) == [0, 0, 1, 1]
    with pytest.raises(ValueError, match=r"reader 1 of 2 of far stopped at item 2: connection"):
        readers.at([4])
    assert readers.at([4, 5]) == [2, 2]


def test_what_deals_a_source():
    """Those with an end are shuffled; how many readers many files make."""
    assert isinstance(stream_of(Numbers([1]), 1), EndlessStream)
    assert [how_many(n) for n in (0, 1, 2, 3, 6, 64, 1000)] == [1, 1, 2, 2, 4, 64, 64]
