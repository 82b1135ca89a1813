"""Data of the Hugging Face `datasets` package, by a stand-in with its interface."""

import io
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.data.image_sources import images_to_score, open_images
from foveal.data.images import ImageDataConfig
from foveal.data.sequence_sources import open_sequences, sequences_to_score
from foveal.data.sequences import SequenceDataConfig


class ClassLabel:
    dtype = "int64"

    def __init__(self, names):
        self.names = names


class Picture:
    dtype = "dict"

    def __init__(self, decode=True):
        self.decode = decode


class Value:
    def __init__(self, dtype):
        self.dtype = dtype


class Split(list):
    """Rows with features, as a Dataset and an IterableDataset have them."""

    features: dict

    def cast_column(self, name, feature):
        return self

    def select_columns(self, names):
        return made([{name: row[name] for name in names} for row in self], self)

    def __getitem__(self, key):
        if not isinstance(key, slice):
            return super().__getitem__(key)
        rows = list(self)[key]
        return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}

    def shuffle(self, seed, buffer_size):
        return made([self[i] for i in np.random.default_rng(seed).permutation(len(self))], self)

    def take(self, count):
        return made(list(self)[:count], self)


def made(rows, features):
    split = Split(rows)
    split.features = features.features if isinstance(features, Split) else features
    return split


@pytest.fixture
def hub(monkeypatch):
    """The package `datasets`, which gives what the test puts into it."""
    module = types.ModuleType("datasets")
    module.ClassLabel, module.Image, module.found = ClassLabel, Picture, {}
    module.load_dataset = lambda name, **options: module.found
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


def pictures(labels, feature):
    rows = []
    for number, label in enumerate(labels):
        stream = io.BytesIO()
        Image.new("RGB", (8, 8), (number, 0, 0)).save(stream, "PNG")
        rows.append({"image": {"bytes": stream.getvalue(), "path": None}, "label": label})
    return made(rows, {"image": Picture(), "label": feature})


def images(**options):
    return ImageDataConfig(path="hf:x", size=8, **options)


@pytest.mark.parametrize(
    ("feature", "labels", "classes"),
    [
        (ClassLabel(["cat", "dog"]), [0, 1], ["cat", "dog"]),
        (Value("string"), ["dog", "ant"], ["ant", "dog"]),
        (Value("int64"), [1, 0], ["0", "1"]),
    ],
    ids=["names", "texts", "numbers"],
)
def test_labels_of_every_kind(hub, feature, labels, classes):
    """A ClassLabel, texts and whole numbers are classes; every split has those of training."""
    hub.found = {
        "training": pictures(labels * 5, feature),
        "dev": pictures(labels[:1] * 2, feature),
        "test": pictures(labels, feature),
    }
    train, valid = open_images(images())
    assert (len(train), len(valid), train.classes) == (10, 2, classes)
    place = classes.index(str(labels[0]) if isinstance(labels[0], str) else classes[labels[0]])
    assert valid.labels.tolist() == [place] * 2
    assert len(images_to_score(images())) == 2


def test_unlabelled_splits_and_rows_are_told(hub):
    """A test split whose labels are all -1 is no part; single ones are left out and counted."""
    feature = ClassLabel(["cat", "dog"])
    hub.found = {
        "train": pictures([0, 1, -1] * 4, feature),
        "test": pictures([-1, -1], feature),
    }
    with pytest.warns(UserWarning, match="6 without a label"):
        train, valid = open_images(images(held_out=0.25))
    assert (len(train), len(valid)) == (6, 2)
    hub.found = {"train": pictures([0.5, 1.0], Value("float32"))}
    with pytest.raises(ValueError, match="whole numbers"):
        open_images(images())


def test_a_few_of_sorted_data_are_of_all_classes(hub):
    """The first pictures are often all of one class; those that are used are drawn from all."""
    hub.found = {"train": pictures([0] * 50 + [1] * 50, ClassLabel(["a", "b"]))}
    for path in ("hf:x", "hf-stream:x"):
        train, _ = open_images(ImageDataConfig(path=path, size=8, max_images=10))
        assert len(train) <= 10
        assert set(train.labels.tolist()) == {0, 1}


def texts(rows, feature):
    return made(
        [{"title": text, "label": label} for text, label in rows],
        {"title": Value("string"), "label": feature},
    )


def test_texts(hub):
    """Splits of any spelling, columns by name, rows without text or label counted."""
    feature = ClassLabel(["neg", "pos"])
    hub.found = {
        "unsupervised": texts([("?", -1)], feature),
        "train": texts([("good", 1), ("bad", 0), ("", 1), (None, 0), ("odd", -1)], feature),
        "validation": texts([("so so", 1)], feature),
        "test": texts([("fine", 1), ("poor", 0)], feature),
    }
    config = SequenceDataConfig(path="hf:x", length=3)
    with pytest.warns(UserWarning, match=r"2 row without text .*1 row without a label"):
        train, valid = open_sequences(config)
    assert [bytes(row) for row in train.sequences] == [b"goo", b"bad"]
    assert [bytes(row) for row in valid.sequences] == [b"so "]
    with pytest.warns(UserWarning, match="row without"):
        scored = sequences_to_score(config, classes=["neg", "pos"])
    assert torch.equal(scored.labels, torch.tensor([1, 0]))
