"""Pictures with classes from folders, archives and emoji: splits, skips and bad data."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.data import image_examples
from foveal.data.emoji import list_emoji, load_emoji
from foveal.data.image_sources import open_images
from foveal.data.images import ImageDataConfig, ImageStream


def save(path, colour):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (10, 8), colour).save(path)


def config(path, **options):
    return ImageDataConfig(path=str(path), size=8, **options)


@pytest.fixture
def folder(tmp_path):
    """Two classes of ten pictures, one of them in a folder below."""
    for number in range(10):
        save(tmp_path / "data" / "cat" / f"{number}.png", (number, 0, 0))
        save(tmp_path / "data" / "dog" / "more" / f"{number}.jpg", (0, 0, 200))
    return tmp_path / "data"


def test_a_folder_is_split_by_class(folder):
    """Every class has its share held out, always the same, and no picture is on both sides."""
    train, test = open_images(config(folder, held_out=0.2))
    assert train.classes == ["cat", "dog"]
    assert test.labels.bincount().tolist() == [2, 2]
    assert len(train) == 16
    reds = [part.read(torch.arange(len(part)))[:, 0, 0, 0] for part in (train, test)]
    reds = [set(r[part.labels == 0].tolist()) for r, part in zip(reds, (train, test), strict=True)]
    assert reds[0] | reds[1] == set(range(10))
    assert not reds[0] & reds[1]
    assert open_images(config(folder, held_out=0.2))[1].checksum() == test.checksum()


def test_train_and_test_folders(folder, tmp_path):
    """Folders named train and val are the split."""
    for part, source in (("train", "cat"), ("val", "dog")):
        for name in ("a", "b"):
            save(tmp_path / "split" / part / name / f"{source}.png", (1, 2, 3))
    train, test = open_images(config(tmp_path / "split"))
    assert (len(train), len(test)) == (2, 2)


def test_damaged_pictures_are_skipped_and_counted(folder):
    """A warning says how many and names them."""
    (folder / "cat" / "0.png").write_bytes(b"")
    (folder / "cat" / "1.png").write_bytes((folder / "cat" / "2.png").read_bytes()[:40])
    with pytest.warns(UserWarning, match=r"skipped 2 pictures.*0\.png is empty.*1\.png"):
        train, test = open_images(config(folder))
    assert len(train) + len(test) == 18
    assert len(train.skipped) == 2


def test_large_sets_are_decoded_on_demand(folder, monkeypatch):
    """The pixels are the same; a damaged file is grey, and named once."""
    whole = open_images(config(folder))[0]
    monkeypatch.setattr(image_examples, "IN_MEMORY", 0)
    lazy = open_images(config(folder))[0]
    index = torch.arange(len(lazy))
    assert torch.equal(lazy.read(index), whole.read(index))
    for path in (folder / "cat").glob("*.png"):
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match="grey picture"):
        assert (lazy.read(index)[lazy.labels == 0] == 128).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lazy.read(index)


def jpeg(value):
    stream = io.BytesIO()
    Image.new("L", (8, 8), value).save(stream, "JPEG")
    return np.frombuffer(stream.getvalue(), np.uint8)


def test_an_archive_of_files(tmp_path):
    """Encoded files back to back, with their own split and names."""
    files = [jpeg(20 * number) for number in range(6)]
    files[3] = files[3][:30]
    np.savez(
        tmp_path / "a.npz",
        data=np.concatenate(files),
        offset=np.cumsum([0, *map(len, files)]),
        label=np.arange(6) % 2,
        is_test=np.arange(6) >= 4,
        classes=np.array(["even", "odd"]),
    )
    with pytest.warns(UserWarning, match="skipped 1 picture of .*picture 3 of a.npz"):
        train, test = open_images(config(tmp_path / "a.npz"))
    assert (train.classes, train.labels.tolist()) == (["even", "odd"], [0, 1, 0])
    assert (test.read(torch.tensor([1]))[0].float().mean() - 100).abs() < 2


@pytest.mark.parametrize("shape", [(8, 12, 10), (8, 1, 12, 10), (8, 3, 12, 10), (8, 12, 10, 3)])
def test_an_archive_of_arrays(tmp_path, shape):
    """Grey or colour, channels first or last, of any size."""
    np.savez(tmp_path / "a.npz", images=np.full(shape, 0.5), labels=np.arange(8) % 2)
    train, _ = open_images(config(tmp_path / "a.npz"))
    pixels = train.read(torch.tensor([0]))
    assert pixels.shape == (1, 3, 8, 8)
    assert set(pixels.unique().tolist()) <= {127, 128}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"label": np.zeros(0)}, "no pictures"),
        ({"label": np.zeros(2)}, "'data'"),
        ({"images": np.zeros((2, 8, 8))}, "'label'"),
        ({"label": np.array([0, -1]), "images": np.zeros((2, 8, 8))}, "negative"),
        ({"label": np.zeros(3), "images": np.zeros((2, 8, 8))}, "2 images, but 3 labels"),
        ({"label": np.zeros(2), "images": np.zeros((2, 8, 8, 7))}, "channels"),
        ({"label": np.zeros(2), "images": np.zeros((2, 8, 8))}, "at least 2"),
        ({"label": np.zeros(2), "data": np.zeros(9, np.uint8), "offset": np.zeros(2)}, "offset"),
        ({"label": np.array([0, 5]), "images": np.zeros((2, 8, 8)), "classes": ["a"]}, "below"),
    ],
)
def test_bad_archives_are_refused(tmp_path, arrays, words):
    """The message names what is wrong with which file."""
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=words):
        open_images(config(tmp_path / "bad.npz"))


def test_broken_files_and_settings_are_refused(tmp_path):
    """Truncated archives, empty folders, values that no picture can have."""
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(ValueError, match="not a readable"):
        open_images(config(tmp_path / "cut.npz"))
    (tmp_path / "empty" / "class").mkdir(parents=True)
    with pytest.raises(ValueError, match="hold no pictures"):
        open_images(config(tmp_path / "empty"))
    with pytest.raises(ValueError, match="at least 4 pixels"):
        open_images(ImageDataConfig(size=2))
    with pytest.raises(ValueError, match=r"least_area.*got 0"):
        open_images(ImageDataConfig(least_area=0.0))


@pytest.mark.parametrize("stream", [False, True])
def test_hugging_face_folders(folder, stream):
    """The same pictures as when the folder is read without the package."""
    pytest.importorskip("datasets")
    source = f"{'hf-stream' if stream else 'hf'}:imagefolder:{folder}"
    with pytest.raises(ValueError, match="one depth"):  # the package does not look deeper
        open_images(config(source))
    for picture in (folder / "dog" / "more").iterdir():
        picture.rename(folder / "dog" / picture.name)
    (folder / "dog" / "more").rmdir()
    train, test = open_images(config(source))
    assert len(train) + len(test) == 20
    assert train.classes == ["cat", "dog"]


def test_without_the_datasets_package_it_says_what_to_install(monkeypatch):
    """One line with the fix."""
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match="pip install datasets"):
        open_images(config("hf:cifar10"))


@pytest.fixture
def emoji_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FOVEAL_CACHE", str(tmp_path))
    few = list_emoji()[::40]
    monkeypatch.setattr("foveal.data.emoji.list_emoji", lambda: few)
    return tmp_path


def test_emoji_are_drawn_once_and_survive_a_damaged_cache(emoji_cache):
    """Distinct pictures; variants of one emoji stay on one side of the split."""
    first = load_emoji(8)
    assert len(first["images"]) > 50
    assert first["images"].std(axis=(1, 2, 3)).min() > 0
    for base in set(first["base"].tolist()):
        assert len(set(first["is_test"][first["base"] == base].tolist())) == 1
    (path,) = emoji_cache.rglob("emoji-*.npz")
    path.write_bytes(path.read_bytes()[:100])
    assert np.array_equal(load_emoji(8)["images"], first["images"])
    path.unlink()
    assert np.array_equal(load_emoji(8)["images"], first["images"])


def test_emoji_need_no_place_to_write(emoji_cache, monkeypatch):
    """Without a cache they are drawn again."""
    (emoji_cache / "file").write_text("")
    monkeypatch.setenv("FOVEAL_CACHE", str(emoji_cache / "file" / "below"))
    assert len(load_emoji(8)["images"]) > 50


def test_a_stream_goes_on_where_it_was(folder):
    """Its state is one number, and the augmented batches after it are the same."""
    train = open_images(config(folder))[0]
    settings = config(folder, rand_augment=0.5, mixup=0.2, cutmix=1.0)
    stream, other = (ImageStream(train, settings, 4, seed=3) for _ in range(2))
    for _ in range(3):
        stream.next()
    other.load_state_dict(stream.state_dict())
    for expected, got in zip(stream.next(), other.next(), strict=True):
        assert torch.equal(expected, got)
