"""Pictures with classes from folders, archives and emoji: splits, skips and bad data."""

import io
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.data import images as image_module
from foveal.data.emoji import list_emoji, load_emoji
from foveal.data.image_sources import images_to_score, open_images
from foveal.data.images import AugmentedImages, ImageDataConfig
from foveal.data.stream import Stream


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
    monkeypatch.setattr(image_module, "IN_MEMORY", 0)
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
    stream, other = (Stream(AugmentedImages(train, settings), 4, seed=3) for _ in range(2))
    for _ in range(3):
        stream.next()
    other.load_state_dict(stream.state_dict())
    for expected, got in zip(stream.next(), other.next(), strict=True):
        assert torch.equal(expected, got)


def tree(root, *paths):
    for number, path in enumerate(paths):
        save(root / path, (number, 0, 0))
    return root


TWO = [f"{name}/{number}.png" for name in ("cat", "dog") for number in range(3)]


@pytest.mark.parametrize(
    ("train", "valid", "test"),
    [
        ("train", "val", "test"),
        ("Train", "Validation", "Test"),
        ("TRAINING", "DEV", "TESTING"),
        ("train-set", "val_set", "test set"),
        ("training_data", "valid", None),
        ("train", None, "testing"),
    ],
)
def test_parts_in_the_spellings_people_use(tmp_path, train, valid, test):
    """Folders above the classes are parts and never classes, whatever their spelling."""
    parts = [part for part in (train, valid, test) if part]
    tree(tmp_path, *[f"{part}/{path}" for part in parts for path in TWO])
    one, two = open_images(config(tmp_path))
    scored = images_to_score(config(tmp_path))
    assert one.classes == two.classes == scored.classes == ["cat", "dog"]
    assert (len(one), len(two), len(scored)) == (6, 6, 6)
    assert two.name == f"{tmp_path.name}, {valid or test}"
    assert scored.name == f"{tmp_path.name}, {test or valid}"


def test_train_may_be_a_class(tmp_path):
    """Pictures of trains, buses and cars are three classes."""
    tree(tmp_path, *[f"{name}/{n}.png" for name in ("train", "bus", "car") for n in range(2)])
    assert open_images(config(tmp_path))[0].classes == ["bus", "car", "train"]


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (["test/1.png"], r"1 picture without a class in test \(1\.png\)"),
        (["test/unknown/1.png", "test/unknown/2.png"], "2 example of class 'unknown'"),
        (["test/cat/1.png", "test/fox/1.png"], "1 example of class 'fox', which training lacks"),
        (["train/empty/notes.md"], r"1 \*\.md .*1 class folder without pictures \(empty\)"),
        (["train/cat/._x.png", "train/cat/x.zip", "train/y.bmp"], "1 picture without a class"),
        (["labels/a.png"], r"1 folder beside the parts \(labels\)"),
        (["a.png", "extra.tar"], r"2 file beside the parts \(a\.png \.\.\.\)"),
    ],
)
def test_what_has_no_class_is_told(tmp_path, extra, words):
    """Pictures without a class, or of one that training lacks, are named and counted."""
    tree(tmp_path, *[f"{part}/{path}" for part in ("train", "val") for path in TWO])
    for path in extra:
        if path.endswith(("png", "bmp")) and "._" not in path:
            save(tmp_path / path, (9, 9, 9))
        else:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(b"\0\5\x16\7")
    with pytest.warns(UserWarning, match=words):
        train, test = open_images(config(tmp_path))
    assert train.classes == ["cat", "dog"]
    assert (len(train), len(test)) == (6, 6)


def test_archives_beside_each_other(tmp_path):
    """Archives named as parts are parts; what else there is is told, two of one part refused."""
    for name in ("train.npz", "test.npz", "other.npz"):
        np.savez(tmp_path / name, images=np.full((4, 8, 8, 3), len(name)), label=np.arange(4) % 2)
    (tmp_path / "1.png").write_bytes(b"no")
    with pytest.warns(UserWarning, match=r"1 \*\.png \(1\.png\), 1 archive beside .*other"):
        train, test = open_images(config(tmp_path))
    assert (len(train), len(test)) == (4, 4)
    shades = [int(part.read(torch.arange(4)).max()) for part in (train, test)]
    assert shades == [9, 8]
    for part in ("train", "test"):
        (tmp_path / f"{part}.npz").rename(tmp_path / f"{part}-2.npz")
        np.savez(tmp_path / f"{part}-1.npz", images=np.zeros((4, 8, 8, 3)), label=np.arange(4) % 2)
        with pytest.raises(ValueError, match=f"must be one .npz archive, got 2: {part}-1.npz"):
            open_images(config(tmp_path))
        (tmp_path / f"{part}-1.npz").unlink()


def test_scoring_other_data_by_the_classes_of_a_run(tmp_path):
    """All of them, as places in the run's classes, by name; without a common one an error."""
    tree(tmp_path / "a", *[f"{name}/1.png" for name in ("Dog", "fox", "cat")])
    with pytest.warns(UserWarning, match="1 example of class 'fox'"):
        scored = images_to_score(config("emoji"), str(tmp_path / "a"), ["ant", "cat", "dog"])
    assert (scored.name, scored.classes) == ("a, all of it", ["ant", "cat", "dog"])
    assert sorted(scored.labels.tolist()) == [1, 2]
    with pytest.raises(ValueError, match=r"classes of the run, x, y; .* has Dog, cat, fox"):
        images_to_score(config("emoji"), str(tmp_path / "a"), ["x", "y"])


def test_held_out_data_are_a_setting(tmp_path):
    """With `valid` all of the data is trained on."""
    tree(tmp_path / "a", *TWO)
    tree(tmp_path / "b", "dog/1.png")
    settings = config(tmp_path / "a", valid=str(tmp_path / "b"))
    train, valid = open_images(settings)
    assert (len(train), valid.labels.tolist(), valid.classes) == (6, [1], ["cat", "dog"])
    assert images_to_score(settings).name == "b, all of it"


def test_held_out_pictures_among_the_others_are_not_trained_on(tmp_path):
    """Class folders of links to pictures of the data, as a split by hand is kept."""
    tree(tmp_path / "a", *TWO)
    held = sorted((tmp_path / "a").rglob("*.png"))[::3]
    for path in held:
        link = tmp_path / "b" / path.relative_to(tmp_path / "a")
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
    train, valid = open_images(config(tmp_path / "a", valid=str(tmp_path / "b")))
    assert (len(train), len(valid)) == (6 - len(held), len(held))
    assert sorted([*train.labels.tolist(), *valid.labels.tolist()]) == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("lazy", [False, True])
def test_no_more_is_decoded_than_needed(tmp_path, monkeypatch, lazy):
    """With max_images only these and the held-out ones; damaged ones are made up for."""
    tree(tmp_path, *[f"{name}/{number}.png" for name in ("a", "b") for number in range(20)])
    decoded = []
    real = image_module.try_square
    monkeypatch.setattr(
        image_module, "try_square", lambda job: decoded.append(job[2]) or real(job)
    )
    if lazy:
        monkeypatch.setattr(image_module, "IN_MEMORY", 0)
    chosen = open_images(config(tmp_path, max_images=5))[0]
    assert len(decoded) == (0 if lazy else 5 + 4)
    assert len(chosen) == 5
    if not lazy:
        whole = open_images(config(tmp_path))[0]
        assert len(whole) == 36
        (broken,) = (path for path in decoded[:1])
        open(broken, "wb").close()
        with pytest.warns(UserWarning, match="skipped 1 picture"):
            assert len(open_images(config(tmp_path, max_images=5))[0]) == 5


SHADES = np.arange(8).reshape(8, 1, 1, 1) * np.ones((1, 8, 8, 3))


@pytest.mark.parametrize(
    ("images", "shades"),
    [
        (SHADES.astype(np.uint8), range(8)),
        (SHADES / 255, range(8)),
        (SHADES, range(8)),
        ((SHADES * 257 * 10).astype(np.uint16), range(0, 80, 10)),
        (SHADES.astype(np.int64), range(8)),
        (SHADES > 3, [0] * 4 + [255] * 4),
    ],
    ids=["bytes", "0..1", "0..255", "16 bits", "int64", "bools"],
)
def test_ranges_of_arrays(tmp_path, images, shades):
    """Every range that people store pictures in gives the same pixels."""
    np.savez(tmp_path / "a.npz", images=images, label=np.arange(8) % 2)
    train, test = open_images(config(tmp_path / "a.npz"))
    found = [
        int(x) for part in (train, test) for x in part.read(torch.arange(len(part)))[:, 0, 0, 0]
    ]
    assert sorted(found) == list(shades)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"images": SHADES * np.nan}, "finite, got 1,536 NaN"),
        ({"images": np.where(SHADES > 6, np.inf, SHADES)}, "finite, got 192 NaN or infinite"),
        ({"images": SHADES / 7 * 2 - 1}, r"negative, got -1 to 1; \(x \+ 1\) / 2"),
        ({"images": SHADES.astype(np.int8) - 4}, "negative"),
        ({"images": SHADES * 1000}, "between 0 and 1 or 255"),
        ({"images": SHADES.astype(complex)}, "numbers"),
        ({"images": SHADES.astype(object)}, "never loaded"),
        ({"images": SHADES, "label": np.arange(8) / 2}, "whole numbers"),
        ({"images": SHADES, "label": np.full(8, np.nan)}, "got nan"),
        ({"images": SHADES, "is_test": np.arange(8)}, "'is_test'"),
        ({"images": SHADES, "is_test": np.zeros(3, bool)}, "'is_test'"),
        ({"images": SHADES, "classes": np.arange(2)}, "list of names"),
        ({"data": np.zeros(9), "offset": np.arange(9)}, "must be bytes"),
        ({"data": np.zeros(9, np.uint8), "offset": np.arange(9)[::-1]}, "growing ints"),
        ({"data": np.zeros(9, np.uint8), "offset": np.arange(9) / 1}, "growing ints"),
    ],
)
def test_arrays_that_mean_no_pictures_are_refused(tmp_path, arrays, words):
    """Nothing is clipped, cast or executed."""
    np.savez(tmp_path / "bad.npz", **{"label": np.arange(8) % 2, **arrays})
    with pytest.raises(ValueError, match=words) as caught:
        open_images(config(tmp_path / "bad.npz"))
    assert "bad.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "form", ["{kind}_{part}", "{part}_{kind}s", "{kind}s-{part}", "{part} {kind}"]
)
def test_parts_in_an_archive(tmp_path, form):
    """x_train and y_train, train_images and train_labels, ...: parts by their names."""
    arrays = {}
    for part, count in (("train", 8), ("val", 4), ("test", 2)):
        image, label = ("x", "y") if form == "{kind}_{part}" else ("image", "label")
        arrays[form.format(kind=image, part=part)] = SHADES[:count].astype(np.uint8)
        arrays[form.format(kind=label, part=part)] = (np.arange(count) % 2)[:, None]
    np.savez(tmp_path / "a.npz", **arrays)
    train, valid = open_images(config(tmp_path / "a.npz"))
    assert (len(train), len(valid), len(images_to_score(config(tmp_path / "a.npz")))) == (8, 4, 2)
