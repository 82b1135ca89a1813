"""Samples of tars: walked through once, then read where they lie, here and far away."""

import io
import json
import os
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.data import images, open_captions, shards
from foveal.data.captioned_set import LazyWords
from foveal.data.captions import CaptionedPictures, PictureDataConfig, Pictures
from foveal.data.image_sources import images_to_score, open_images
from foveal.data.images import AugmentedImages, ImageDataConfig
from foveal.data.stream import Stream


def png(value):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(stream, "PNG")
    return stream.getvalue()


def sample(number, kind="txt"):
    """A picture of its number, its captions and its class."""
    told = {
        "txt": [("txt", f"text {number}\nagain {number}".encode())],
        "json": [("json", json.dumps({"text": f"text {number}", "label": number % 3}).encode())],
        "cls": [("cls", f"{number % 3}\n".encode())],
        "named": [("cls", "abc"[number % 3].encode())],
        "none": [],
    }[kind]
    return [(f"{number:05}.{suffix}", raw) for suffix, raw in [("png", png(number)), *told]]


def pack(path, *samples, padding=0):
    with tarfile.open(path, "w") as archive:
        for name, raw in [one for found in samples for one in found]:
            info = tarfile.TarInfo(name)
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
        info = tarfile.TarInfo(".padding")
        info.size = padding
        archive.addfile(info, io.BytesIO(bytes(padding)))
    return path


@pytest.fixture
def large(monkeypatch):
    """Whatever is larger than nothing is read when it is needed."""
    monkeypatch.setattr(images, "IN_MEMORY", 0)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """A cache folder of the test's own, which small tars are kept in too."""
    monkeypatch.setenv("FOVEAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(shards, "_WORTH", 0)
    return tmp_path / "cache" / "shards"


def captioned(path, **options):
    return open_captions(PictureDataConfig(path=str(path), size=8, **options))


def values(pictures):
    return [int(one) for one in pictures.flatten(1)[:, 0]]


def test_captions_and_pictures_are_those_in_memory(tmp_path, large, monkeypatch):
    """Every way of asking gives what the set in memory gives, subsets and batches too."""
    pack(tmp_path / "a-0.tar", *(sample(i) for i in range(12)))
    pack(tmp_path / "a-1.tar", *(sample(i, "json") for i in range(12, 20)))
    lazy = captioned(tmp_path / "a-{0..1}.tar")
    monkeypatch.setattr(images, "IN_MEMORY", 1 << 30)
    held = captioned(tmp_path / "a-{0..1}.tar")
    index = torch.tensor([0, 5, 2])
    for far, near in zip(lazy, held, strict=True):
        assert type(far).__name__ == "LazyCaptionedSet"
        assert len(far) == len(near)
        assert list(far.captions) == near.captions
        assert far.captions[:1] == near.captions[:1]
        assert far.all_captions == near.all_captions
        assert torch.equal(far.images(), near.images())
        index %= len(near)
        for a, b in ((far, near), (far.subset(index, "x"), near.subset(index, "x"))):
            assert a.first_captions() == b.first_captions()
            assert torch.equal(a.images(torch.tensor([1])), b.images(torch.tensor([1])))
            assert torch.equal(a.pixels[:2], b.pixels[:2])
        assert far.checksum() != far.subset(index, "x").checksum()
    words = torch.arange(200).reshape(-1, 2)[: len(held[0].all_captions)]
    for far, near in zip(lazy, held, strict=True):
        assert torch.equal(far.counts, near.counts)
        made = LazyWords(far, lambda texts: torch.tensor([[len(t), ord(t[0])] for t in texts]))
        wanted = torch.tensor([[len(t), ord(t[0])] for t in near.all_captions])
        assert torch.equal(made[torch.arange(len(made))], wanted)
        assert torch.equal(made[torch.tensor([1, 0])], wanted[[1, 0]])
        assert far.some_captions(10**6) == near.some_captions(1) == near.all_captions
        assert far.some_captions(1) == near.captions[0]
    for make in (lambda s: Pictures(s, True), lambda s: CaptionedPictures(s, words)):
        one, two = (Stream(make(parts[0]), 4) for parts in (lazy, held))
        for _ in range(4):
            found, wanted = one.next(), two.next()
            assert all(
                map(torch.equal, *((x if isinstance(x, tuple) else (x,)) for x in (found, wanted)))
            )


@pytest.mark.parametrize("kind", ["cls", "json", "named"])
def test_pictures_with_classes(tmp_path, kind, large):
    """A number or a name in a .cls, or a label in a .json, for globs, ranges and folders."""
    pack(tmp_path / "s-0.tar", *(sample(i, kind) for i in range(10)), sample(10, "none"))
    pack(tmp_path / "s-1.tar", *(sample(i, kind) for i in range(11, 30)))
    for where in (tmp_path, tmp_path / "s-*.tar", tmp_path / "s-{0..1}.tar"):
        with pytest.warns(UserWarning, match="1 without a class"):
            train, test = open_images(ImageDataConfig(path=str(where), size=8))
        assert train.classes == (list("abc") if kind == "named" else list("012"))
        found = train.read(torch.arange(len(train)))
        assert [v % 3 for v in values(found)] == train.labels.tolist()
        assert len(train) + len(test) == 29
    batch = Stream(AugmentedImages(train, ImageDataConfig(size=8)), 5).next()
    assert batch[0].shape == (5, 3, 8, 8)


def test_parts_of_a_folder(tmp_path):
    """train.tar and test.tar are the parts; classes that training lacks are left out."""
    pack(tmp_path / "train.tar", *(sample(i, "named") for i in (0, 1, 3, 4)))
    pack(tmp_path / "test.tar", *(sample(i, "named") for i in (6, 8, 10)))
    config = ImageDataConfig(path=str(tmp_path), size=8)
    with pytest.warns(UserWarning, match="class 'c', which training lacks"):
        train, test = open_images(config)
    assert (len(train), len(test)) == (4, 2)
    with pytest.warns(UserWarning, match="class 'c', which training lacks"):
        assert len(images_to_score(config)) == 2


def test_it_is_walked_through_once(tmp_path, cache, monkeypatch):
    """The index is found again until the tar changes; a damaged index is made anew."""
    path = pack(tmp_path / "a.tar", *(sample(i) for i in range(20)))
    walked = []
    build = shards.build_index
    monkeypatch.setattr(
        shards, "build_index", lambda file, *rest: walked.append(file) or build(file, *rest)
    )
    first = captioned(path)
    for _ in range(3):
        again = captioned(path)
        assert again[0].captions == first[0].captions
    assert len(walked) == 1
    assert len(captioned(path, column="text")[0].captions) == len(first[0].captions)
    assert len(walked) == 2  # another column
    for file in cache.glob("*.npz"):
        file.write_bytes(file.read_bytes()[:100])
    captioned(path)
    assert len(walked) == 3
    pack(path, *(sample(i) for i in range(21)))
    assert sum(map(len, captioned(path))) == 21
    assert len(walked) == 4


def test_only_headers_and_captions_are_read(tmp_path, large, monkeypatch):
    """Opening a set reads no picture; a batch reads those of its own rank alone."""
    pack(tmp_path / "a.tar", *(sample(i) for i in range(64)))
    read = []
    picture = shards.Shards.picture
    monkeypatch.setattr(
        shards.Shards, "picture", lambda self, i: read.append(i) or picture(self, i)
    )
    train, _ = captioned(tmp_path / "a.tar")
    assert read == []
    shares = []
    for rank in range(4):
        stream = Stream(Pictures(train, False), 3, 0, rank, 4)
        for _ in range(4):
            stream.next()
        shares.append(sorted(read))
        read.clear()
    assert [len(share) for share in shares] == [12] * 4
    assert len({number for share in shares for number in share}) == 48


def test_damage_is_named(tmp_path, large):
    """A cut tar, a broken header in the middle, a damaged picture, bad captions."""
    whole = pack(tmp_path / "a.tar", *(sample(i) for i in range(40))).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match=r"cut\.tar is damaged"):
        captioned(tmp_path / "cut.tar")
    start = whole.index(b"00020.png")
    broken = whole[:start] + b"\xff" * 512 + whole[start + 512 :]
    (tmp_path / "broken.tar").write_bytes(broken)
    with pytest.warns(UserWarning, match=r"broken\.tar is damaged .*no header"):
        captioned(tmp_path / "broken.tar")
    pack(
        tmp_path / "b.tar",
        [("0.png", b"no picture"), ("0.txt", b"x")],
        [("1.png", png(1)), ("1.txt", b"\xff\xff\xfe")],
        [("2.png", png(2)), ("2.json", b"{")],
        [("3.png", png(3))],
        *(sample(i) for i in range(4, 30)),
    )
    with pytest.warns(UserWarning, match=r"3 pictures.*the \.txt of 1 of b\.tar"):
        train, _ = captioned(tmp_path / "b.tar", held_out=0.01)
    with pytest.warns(UserWarning, match=r"0 of b\.tar is not a picture.* grey") as told:
        grey = train.images(torch.arange(len(train)).repeat(2))
    assert len(told) == 1
    assert (grey * 255).round().eq(128).flatten(1).all(1).sum() == 2


def test_a_tar_that_changes_while_it_is_read_is_named(tmp_path, large):
    """Never wrong bytes."""
    path = pack(tmp_path / "a.tar", *(sample(i) for i in range(20)))
    train, _ = captioned(path)
    pack(path, *(sample(i) for i in range(30)))
    with pytest.raises(ValueError, match=r"a\.tar .* while it was in use"):
        train.images()


def test_what_no_tar_can_serve(tmp_path):
    """Packed ones, none at all, and pictures without classes."""
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("x"))
    pack(tmp_path / "b.tar", *(sample(i) for i in range(4)))
    (tmp_path / "c.tar").write_bytes(b"no tar" * 1000)
    for name, said in (
        ("a.tar.gz", "is packed or no tar"),
        ("c.tar", "is packed or no tar"),
        ("d.tar", "does not exist"),
        ("b.tar", "no picture of b.tar has a class"),
        ("e-{0..3}.tar", "does not exist"),
    ):
        with pytest.raises(ValueError, match=said):
            open_images(ImageDataConfig(path=str(tmp_path / name), size=8))


def test_far_away(tmp_path, large, monkeypatch):
    """memory://, in ranges and globs: the same samples, by few reads of what is asked for."""
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    for part in range(2):
        numbers = range(part * 10, part * 10 + 10)
        path = pack(
            tmp_path / f"f-{part}.tar", *(sample(i, "named") + sample(i)[1:] for i in numbers)
        )
        files.pipe(f"/f-{part}.tar", path.read_bytes())
    try:
        here = captioned(tmp_path / "f-{0..1}.tar")
        for where in ("memory://f-{0..1}.tar", "memory://f-*.tar"):
            far = captioned(where)
            assert list(far[0].captions) == list(here[0].captions)
            assert torch.equal(far[0].images(), here[0].images())
        train, _ = open_images(ImageDataConfig(path="memory://f-*.tar", size=8))
        assert [
            v % 3 for v in values(train.read(torch.arange(len(train))))
        ] == train.labels.tolist()
        for kind in (open_images, open_captions):
            config = ImageDataConfig if kind is open_images else PictureDataConfig
            with pytest.raises(ValueError, match=r"must name webdataset archives"):
                kind(config(path="memory://folder", size=8))
        files.pipe("/g.tar", b"\x1f\x8b" * 1000)
        with pytest.raises(ValueError, match=r"plain tars.*packed or no tar"):
            captioned("memory://g.tar")
    finally:
        files.store.clear()


@pytest.mark.skipif(not os.environ.get("FOVEAL_LONG"), reason="long: FOVEAL_LONG=1")
def test_many_samples_take_little_memory(tmp_path):
    """100,000 samples are about 60 bytes each."""
    numbers = range(100_000)
    raw = png(1)
    path = pack(tmp_path / "a.tar", *([(f"{i}.png", raw), (f"{i}.txt", b"x")] for i in numbers))
    from foveal.data.walk import LeftOut

    found = shards.Shards([path], "", LeftOut())
    held = sum(v.nbytes for v in vars(found._parts[0]).values() if isinstance(v, np.ndarray))
    assert len(found) == 100_000
    assert held / len(found) < 64
