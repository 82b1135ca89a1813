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


def changed(folder):
    """Everything that can be changed about pictures."""
    config = ImageDataConfig(
        size=8,
        least_area=0.4,
        rand_augment=0.8,
        erasing=0.6,
        mixup=0.3,
        cutmix=1.0,
        transform=f"{__name__}:noisy",
    )
    return AugmentedImages(images(), config)


def noisy(picture):
    return picture.float() / 255 * torch.rand(())


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
    "changed images": changed,
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


def rows(batch):
    """Each example of a batch as bytes."""
    parts = list(batch.values()) if isinstance(batch, dict) else batch
    parts = [batch] if isinstance(batch, torch.Tensor) else parts
    return [
        b"".join(x.contiguous().numpy().tobytes() for x in row) for row in zip(*parts, strict=True)
    ]


@pytest.mark.parametrize("name", SOURCES)
def test_examples_are_the_same_however_a_batch_is_cut(name, tmp_path):
    """A global batch of 8, bit for bit: any processes, accumulation, odd cuts, resumed too."""
    source = SOURCES[name](tmp_path)

    def dealt(processes, each, after=0, steps=24):
        streams = [Stream(source, each, SEED, rank, processes) for rank in range(processes)]
        for stream in streams:
            if after:
                whole = Stream(source, 8, SEED)
                whole.sampler.position = after
                stream.load_state_dict(whole.state_dict())
        found = []
        while len(found) < steps:
            for stream in streams:
                found += rows(stream.next())
        return found[:steps]

    if name == "sequences":  # as long as the longest of its batch
        source = Pictures(captioned(), flip=True)
    alone = dealt(1, 8)
    for processes, each in ((2, 4), (4, 2), (8, 1), (1, 2), (1, 3), (2, 3)):
        assert dealt(processes, each) == alone, (processes, each)
    assert dealt(4, 2, after=8, steps=16) == alone[8:]


def test_a_cut_through_a_pair_reads_the_partner_and_nothing_else():
    """An even share mixes its own pictures; an odd one reads one more."""
    config = ImageDataConfig(size=8, mixup=0.5)
    read = []

    whole = images()
    counted = ImageSet(
        "i", whole.labels, whole.classes, lambda i: read.append(len(i)) or whole.read(i)
    )
    for each, most in ((4, 4), (3, 4), (1, 2)):
        read.clear()
        stream = Stream(AugmentedImages(counted, config), each, SEED, 1, 2)
        assert len(stream.next()[0]) == each
        assert read == [most]


@pytest.mark.parametrize("name", ["images", "pictures", "tokens"])
def test_a_run_that_began_with_draws_of_a_batch_keeps_them(name, tmp_path):
    """Checkpoints of the time between say so, and go on."""
    source = SOURCES[name](tmp_path)
    old, new = Stream(source, BATCH, SEED), Stream(source, BATCH, SEED)
    old.load_state_dict({**old.state_dict(), "position": 20, "draws": "by place"})
    new.load_state_dict({**new.state_dict(), "position": 20})
    # with one process these were drawn like those of the time before
    assert digest(old.next()) == SIXTH[name][0]
    assert old.state_dict()["draws"] == "by place"
    assert new.state_dict()["draws"] == "by example"
    assert digest(new.next()) != SIXTH[name][0]


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
