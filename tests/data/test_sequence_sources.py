"""Sequences with classes from every source, batched with the mask of what is real."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.data.sequence_sources import open_sequences
from foveal.data.sequences import SequenceDataConfig, SequenceSet, SequenceStream


def config(path, **options):
    return SequenceDataConfig(path=str(path), **options)


def test_listops():
    """Held-out expressions do not depend on how many are trained on."""
    small, large = (
        open_sequences(config("listops", train_examples=n, test_examples=4)) for n in (3, 6)
    )
    assert [len(part) for part in large] == [6, 4]
    assert small[1].checksum() == large[1].checksum()
    assert large[0].num_tokens == 16
    tokens, mask = large[0].read(torch.tensor([0, 1]))
    assert tokens.shape == mask.shape
    assert (tokens[~mask] == 0).all()
    assert (tokens[mask] > 0).all()


def test_folders_of_text(tmp_path):
    """Bytes by class folder, cut to length; a folder that is not scored is not trained on."""
    for part in ("train", "test"):
        for name in ("neg", "pos"):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(3):
                (tmp_path / part / name / f"{i}.txt").write_text(f"{part} {name} {i}")
    (tmp_path / "train" / "unsup").mkdir()
    (tmp_path / "train" / "unsup" / "0.txt").write_text("nobody said")
    (tmp_path / "train" / "pos" / "empty.txt").write_text("")
    with pytest.warns(UserWarning, match="skipped|left out") as told:
        train, test = open_sequences(config(tmp_path, length=8))
    told = " ".join(str(one.message) for one in told)
    assert "empty.txt is empty" in told
    assert "1 without a class in unsup" in told
    assert train.classes == ["neg", "pos"]
    assert (len(train), len(test)) == (6, 6)
    assert bytes(train.sequences[0]) == b"train ne"
    assert len(train.skipped) == 1
    one, other = open_sequences(config(tmp_path / "test", held_out=0.3))
    assert (len(one), len(other)) == (4, 2)
    assert sorted(other.labels.tolist()) == [0, 1]


def test_pixels_of_an_archive(tmp_path):
    """JPEG bytes back to back become rows of grey pixels, split as the archive says."""
    data, offset = b"", [0]
    for shade in (0, 80, 160, 240):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (shade, shade, shade)).save(file, "JPEG")
        data += file.getvalue()
        offset.append(len(data))
    np.savez(
        tmp_path / "small.npz",
        data=np.frombuffer(data, np.uint8),
        offset=np.array(offset),
        label=np.array([0, 1, 0, 1]),
        is_test=np.array([False, False, True, True]),
        classes=np.array(["dark", "light"]),
    )
    train, test = open_sequences(config(tmp_path / "small.npz", size=8, length=64))
    assert train.classes == ["dark", "light"]
    assert [row.shape for row in test.sequences] == [(64,), (64,)]
    assert abs(int(test.sequences[0].mean()) - 160) < 3


def test_stream_resumes():
    """The place in the stream is one integer; a resumed stream repeats what would have come."""
    rows = [np.full(i + 1, i, np.uint8) for i in range(10)]
    data = SequenceSet("ten", rows, list(range(10)), [str(i) for i in range(10)])
    stream = SequenceStream(data, batch_size=3, seed=1)
    stream.next()
    state = stream.state_dict()
    wanted = stream.next()
    again = SequenceStream(data, batch_size=3, seed=1)
    again.load_state_dict(state)
    for a, b in zip(again.next(), wanted, strict=True):
        assert torch.equal(a, b)
    tokens, mask, labels = wanted
    assert torch.equal(mask.sum(1), labels + 1)
    assert torch.equal(tokens.amax(1), labels)


def test_mistakes_are_named(tmp_path):
    """A path that is nothing, and numbers that no data can have."""
    with pytest.raises(ValueError, match="is no folder"):
        open_sequences(config(tmp_path / "absent"))
    with pytest.raises(ValueError, match="two classes"):
        open_sequences(config(tmp_path))
    with pytest.raises(ValueError, match=r"data\.length"):
        open_sequences(config("listops", length=0))
    with pytest.raises(ValueError, match=r"data\.held_out"):
        open_sequences(config("listops", held_out=1.0))
    with pytest.raises(ValueError, match=r"data\.max_examples"):
        open_sequences(config("listops", max_examples=-1))
