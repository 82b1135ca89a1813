"""One stream over every source: the same order and draws, resumed or by many processes."""

import hashlib
import json

import numpy as np
import pytest
import torch

from foveal.data.captions import CaptionedPictures, CaptionedSet, Pictures
from foveal.data.corpus import Corpus, Span
from foveal.data.images import AugmentedImages, ImageDataConfig, ImageSet
from foveal.data.pixels import PixelValues
from foveal.data.sequences import SequenceSet
from foveal.data.stream import Stream
from foveal.data.text import TextWindows

BATCH, SEED = 4, 3


def text(folder):
    path = folder / "text"
    if not path.exists():
        path.write_bytes(bytes(i % 251 for i in range(4096)))
    return TextWindows(Corpus("t", [Span(path, 0, 4096)]), 32)


def pixels():
    return (np.arange(10 * 8 * 8 * 3) * 37 % 256).astype(np.uint8).reshape(10, 8, 8, 3)


def images():
    return ImageSet.from_pixels("i", pixels(), np.arange(10) % 2, ["a", "b"])


def captioned():
    pictures = torch.from_numpy(pixels()).permute(0, 3, 1, 2)
    return CaptionedSet("c", pictures, [["x"] * (1 + i % 3) for i in range(10)])


def varied(folder):
    config = ImageDataConfig(size=8, crop=1, mixup=0.5, cutmix=1.0, erasing=0.5, balance=0.5)
    return AugmentedImages(images(), config)


def sequences(folder):
    rows = [np.arange(1, 3 + i, dtype=np.uint8) for i in range(10)]
    return SequenceSet("s", rows, np.arange(10) % 3, list("abc"))


def captions(folder):
    return CaptionedPictures(captioned(), torch.arange(19 * 4).reshape(19, 4))


def tokens(folder):
    words, grid = torch.arange(19 * 4).reshape(19, 4), torch.arange(10 * 6).reshape(10, 6)
    return CaptionedPictures(captioned(), words, grid, shuffle=True)


class Squares:
    """A stranger's data set: a length, and what is at some numbers."""

    def __len__(self):
        return 7

    def read(self, indices):
        return {"x": indices, "y": indices**2}


SOURCES = {
    "text": text,
    "images": varied,
    "pixels": lambda folder: PixelValues(images(), flip=False),
    "mirrored pixels": lambda folder: PixelValues(images(), flip=True),
    "sequences": sequences,
    "pictures": lambda folder: Pictures(captioned(), flip=True),
    "captions": captions,
    "tokens": tokens,
    "squares": lambda folder: Squares(),
}

# the sixth batch of each, of one process and of the second of two, as commit da9e215 dealt it
SIXTH = {
    "text": ("f828cce8bcf8", "cefe5485a035"),
    "images": ("538c247c6833", "5f4adc119735"),
    "pixels": ("af0b58afabe8", "ba7e51fc0115"),
    "sequences": ("1ae54a018c7c", "aaa787ceaedc"),
    "pictures": ("6ee14bf7d7cc", "1727587a8565"),
    "captions": ("79870fb0895d", "c2a738eff698"),
    "tokens": ("54cc1552866f", "226ed22a4289"),
}


def digest(batch):
    parts = batch.values() if isinstance(batch, dict) else batch
    found = hashlib.sha256()
    for part in (batch,) if isinstance(batch, torch.Tensor) else parts:
        found.update((part.float() * 4096).round().long().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


@pytest.mark.parametrize("name", SOURCES)
def test_a_saved_position_deals_the_same_batches(name, tmp_path):
    """Order and draws go on exactly, after a state that went through JSON."""
    stream, again = (Stream(SOURCES[name](tmp_path), BATCH, SEED) for _ in range(2))
    for _ in range(5):
        stream.next()
    again.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    assert [digest(stream.next()) for _ in range(4)] == [digest(again.next()) for _ in range(4)]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", SOURCES)
def test_many_processes_deal_what_one_would(name, world, tmp_path):
    """Neither the order nor a draw depends on the number of processes."""
    source = SOURCES[name](tmp_path)
    alone = Stream(source, BATCH, SEED)
    together = [Stream(source, BATCH, SEED, rank, world) for rank in range(world)]
    for _ in range(3):
        for stream in together:
            assert digest(stream.next()) == digest(alone.next())


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("name", SIXTH)
def test_a_state_of_before_goes_on_exactly(name, processes, tmp_path):
    """Checkpoints that say nothing of draws go on with those they were taken with."""
    source = SOURCES[name](tmp_path)
    stream = Stream(source, BATCH, SEED, processes - 1, processes)
    old = {"position": 20 * processes, "seed": SEED, "num_items": len(source)}
    stream.load_state_dict(old)
    assert digest(stream.next()) == SIXTH[name][processes - 1]
    later = Stream(source, BATCH, SEED, processes - 1, processes)
    later.load_state_dict(stream.state_dict())  # saved again since
    assert digest(later.next()) == digest(stream.next())


def test_a_state_of_before_that_cannot_go_on_is_refused():
    """Mirrored pixels were drawn by numbers that depended on the number of processes."""
    stream = Stream(PixelValues(images(), flip=True), BATCH, SEED)
    with pytest.raises(ValueError, match=r"earlier foveal.*start a new run"):
        stream.load_state_dict({"position": 20, "seed": SEED, "num_items": 10})


def test_draws_differ_from_place_to_place():
    """Mirrored pictures are others in another pass, and with another seed."""
    ones = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    ones[..., 0] = 255
    source = Pictures(CaptionedSet("one", ones, [["x"]]), flip=True)
    one, other = (Stream(source, 1, seed) for seed in (0, 1))
    flips = [[int(s.next()[0, 0, 0, 0]) for _ in range(64)] for s in (one, other)]
    assert flips[0] != flips[1]
    assert all(16 < sum(side) < 48 for side in flips)
