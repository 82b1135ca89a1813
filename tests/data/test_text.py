"""Windows of bytes: what is trained on, and what is scored."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foveal.data.sources import Corpus, Span
from foveal.data.text import IGNORED, TextStream, decode, encode, scoring_windows


@pytest.fixture(scope="module")
def make_corpus(tmp_path_factory):
    """A corpus whose byte at position i is i % 251, of any length up to 4096."""
    path = tmp_path_factory.mktemp("text") / "bytes.bin"
    path.write_bytes(bytes(i % 251 for i in range(4096)))
    return lambda length: Corpus("the test text", [Span(path, 0, length)])


@pytest.mark.parametrize("length", [33, 34, 64, 65, 100, 1000, 1001])
def test_targets_are_the_next_bytes(make_corpus, length):
    """Each target is the byte after its input, for every length down to one window."""
    stream = TextStream(make_corpus(length), context=32, batch_size=3)
    for _ in range(50):
        inputs, targets = stream.next()
        assert inputs.shape == targets.shape == (3, 32)
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        assert torch.equal((inputs[:, -1] + 1) % 251, targets[:, -1])


def test_passes_cut_the_text_at_different_offsets(make_corpus):
    """Windows do not repeat from pass to pass, so that every byte meets every place."""
    stream = TextStream(make_corpus(1000), context=32, batch_size=29)
    starts = {int(row[0]) % 32 for _ in range(20) for row in stream.next()[0]}
    assert len(starts) > 10


def test_the_stream_resumes_to_the_bit(make_corpus):
    """A saved position continues with the same windows."""
    one, two = (TextStream(make_corpus(1000), 16, 4, seed=9) for _ in range(2))
    for _ in range(77):
        one.next()
    two.load_state_dict(one.state_dict())
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(one.next(), two.next(), strict=True))


def test_a_text_shorter_than_the_context_is_named(make_corpus):
    """Both numbers stand in the message."""
    with pytest.raises(ValueError, match=r"the test text has 32 bytes, but context=32 .* 33"):
        TextStream(make_corpus(32), context=32, batch_size=1)


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_every_byte_but_the_first_is_scored_once(make_corpus, data):
    """For every length, context and stride the scored targets are bytes 1..n-1, in order."""
    length = data.draw(st.integers(2, 300))
    context = data.draw(st.integers(1, 64))
    stride = data.draw(st.integers(1, context))
    corpus = make_corpus(length)
    scored = []
    for inputs, targets in scoring_windows(corpus, context, stride=stride):
        assert 1 <= len(inputs) <= context
        assert len(inputs) == len(targets)
        chosen = targets != IGNORED
        assert torch.equal(((inputs + 1) % 251)[chosen], targets[chosen])
        scored += targets[chosen].tolist()
    assert scored == corpus.read(1, length - 1).tolist()


def test_a_stride_gives_history(make_corpus):
    """With stride 8 in a context of 32 each scored byte after the first window sees 24 or more."""
    windows = list(scoring_windows(make_corpus(500), 32, stride=8))
    for inputs, targets in windows[1:]:
        first = int((targets != IGNORED).nonzero()[0])
        assert first >= 24
        assert len(inputs) == 32


def test_a_limit_spreads_windows_evenly(make_corpus):
    """A quick evaluation looks at fixed windows from the start to the end."""
    first, second = (list(scoring_windows(make_corpus(4000), 10, limit=7)) for _ in range(2))
    assert len(first) == 7
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))
    assert first[0][0][0] == 0
    assert len(list(scoring_windows(make_corpus(40), 10, limit=100))) == 4


@pytest.mark.parametrize("stride", [0, 11])
def test_a_senseless_stride_is_named(make_corpus, stride):
    """A stride beyond the context would leave bytes out."""
    with pytest.raises(ValueError, match="stride"):
        list(scoring_windows(make_corpus(40), 10, stride=stride))


def test_text_round_trip():
    """Tokens are UTF-8 bytes; what is not UTF-8 is shown, not raised."""
    assert decode(encode("naïve €")) == "naïve €"
    assert decode(torch.tensor([65, 255])) == "A\N{REPLACEMENT CHARACTER}"
    assert np.array(encode("é")).tolist() == [195, 169]


@pytest.mark.parametrize("size", [200, 5001])
def test_the_checksum_of_much_text_reads_some_of_it(tmp_path, monkeypatch, size):
    """Beyond a limit the length and pieces over the whole make it; it tells other texts apart."""
    for name, value in (("_HASHED_WHOLE", 100), ("_PIECE", 16), ("_SAMPLED", 5)):
        monkeypatch.setattr(f"foveal.data.corpus.{name}", value)
    path = tmp_path / "long.txt"

    def checksum(text):
        path.write_bytes(text)
        corpus, read = Corpus("long", [Span(path, 0, len(text))]), []
        whole = corpus.read
        corpus.read = lambda start, length: read.append(length) or whole(start, length)
        return corpus.checksum(), sum(read)

    text = bytes(range(200)) * (size // 200) + b"x" * (size % 200)
    found, count = checksum(text)
    assert count == 5 * 16
    assert checksum(text)[0] == found
    others = [text + b"x", b"y" + text[1:], text[:-1] + b"y"]
    assert len({found, *(checksum(other)[0] for other in others)}) == 4
