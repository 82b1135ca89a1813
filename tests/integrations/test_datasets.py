"""Hugging Face `datasets` itself: Arrow files under our sampler, and streams."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

datasets = pytest.importorskip("datasets", minversion="4")

from foveal.data import images as image_sets  # noqa: E402
from foveal.data import open_captions, open_corpus  # noqa: E402
from foveal.data.captions import PictureDataConfig  # noqa: E402
from foveal.data.image_sources import open_images  # noqa: E402
from foveal.data.images import ImageDataConfig  # noqa: E402
from foveal.data.sources import corpus_to_score  # noqa: E402
from foveal.recipes.config import absolute_paths, config_from_dict  # noqa: E402
from foveal.recipes.kind import KindTask  # noqa: E402
from foveal.training.layout import Layout  # noqa: E402


@pytest.fixture(autouse=True)
def home(tmp_path_factory, monkeypatch):
    """Nothing is downloaded, and nothing kept outside of the tests' folders."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


def png(value):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(stream, "PNG")
    return {"bytes": stream.getvalue(), "path": None}


def words(number):
    return f"text {number} " + "äb" * (number % 7)


FEATURES = {
    "image": datasets.Image(),
    "label": datasets.ClassLabel(names=["even", "odd"]),
    "text": datasets.Value("string"),
}


def table(numbers, broken=()):
    rows = {
        "image": [{"bytes": b"no", "path": None} if i in broken else png(i) for i in numbers],
        "label": [i % 2 for i in numbers],
        "text": [None if i % 10 == 9 else words(i) for i in numbers],
    }
    return datasets.Dataset.from_dict(rows, features=datasets.Features(FEATURES))


@pytest.fixture
def folder(tmp_path):
    """Eight files to train on and one to score on."""
    home = tmp_path / "set"
    home.mkdir()
    for part in range(8):
        table(range(part * 12, part * 12 + 12)).to_parquet(home / f"train-{part}.parquet")
    table(range(100, 120)).to_parquet(home / "test-0.parquet")
    return home


def test_texts_are_one_long_array(folder):
    """Every byte, with a newline behind each text; rows without text are none; documents begin."""
    train, test = open_corpus(f"hf:parquet:{folder}")
    wanted = "".join(f"{words(i)}\n" for i in range(96) if i % 10 != 9).encode()
    assert len(train) == len(wanted)
    assert train.read(0, len(train)).tobytes() == wanted
    for start in range(0, len(wanted) - 40, 7):
        assert train.read(start, 40).tobytes() == wanted[start : start + 40]
    places = train.places(3, 200)
    text = wanted[3:203]
    restarts = [i + 1 for i, byte in enumerate(text[:-1]) if byte == 10]
    assert [i for i in range(1, 200) if places[i] == 0] == restarts
    assert test.read(0, 8).tobytes() == b"text 100"
    assert corpus_to_score(f"hf:parquet:{folder}").name == test.name


@pytest.mark.parametrize(
    ("column", "said"), [("txt", "did you mean 'text'"), ("label", "columns of text 'text'")]
)
def test_a_column_that_is_not_there(folder, column, said):
    """Is named, with those that are."""
    with pytest.raises(ValueError, match=said):
        open_corpus(f"hf:parquet:{folder}", column=column)


def test_pictures_are_read_when_needed(folder, monkeypatch):
    """Labels are read as a column; pictures by number, of a lazy set as of one in memory."""
    config = ImageDataConfig(path=f"hf:parquet:{folder}", size=8)
    held, _ = open_images(config)
    monkeypatch.setattr(image_sets, "IN_MEMORY", 0)
    lazy, test = open_images(config)
    assert type(lazy.read).__name__ == "LazyPictures"
    assert lazy.classes == held.classes == ["even", "odd"]
    index = torch.tensor([5, 90, 5, 0])
    assert torch.equal(lazy.read(index), held.read(index))
    assert [int(v) for v in lazy.read(index)[:, 0, 0, 0]] == [5, 90, 5, 0]
    assert len(test) == 20


def test_captioned_pictures(folder, monkeypatch):
    """The columns of pictures and of texts, read when they are needed or held."""
    config = PictureDataConfig(path=f"hf:parquet:{folder}", size=8)
    with pytest.warns(UserWarning, match="has no caption"):
        held, _ = open_captions(config)
    monkeypatch.setattr(image_sets, "IN_MEMORY", 0)
    with pytest.warns(UserWarning, match="has no caption"):
        lazy, test = open_captions(config)
    assert list(lazy.captions) == held.captions
    assert held.captions[3] == [words(3)]
    assert torch.equal(lazy.images(), held.images())
    assert len(test) == 18
    with pytest.raises(ValueError, match=r"hf-stream:x.*hf:NAME"):
        open_captions(PictureDataConfig(path="hf-stream:x", size=8))


TEXT = {"name": "TransformerLM", "dim": 8, "depth": 1, "heads": 1, "dim_head": 8}
PICTURES = {
    "name": "SepViT",
    "dim": 8,
    "depth": [1],
    "heads": [1],
    "dim_head": 8,
    "window_size": 2,
}


def task(data, rank=0, world=1, kind="bytes", model=TEXT, **training):
    settings = {"task": kind, "model": model, "data": data}
    settings["training"] = {"steps": 1, "batch_size": 8, **training}
    config = config_from_dict(settings, "the test")
    return KindTask(absolute_paths(config), Layout(rank, world))


def test_a_stream_of_texts(folder):
    """Windows of every reader in turn, the same on 1, 2 and 4 processes and when resumed."""
    data = {"path": f"hf-stream:parquet:{folder}", "context": 16}
    alone = task(data, prefetch=2)
    wanted = [alone.stream.next()[0] for _ in range(6)]
    assert alone.stream.state_dict()["readers"] == 8
    alone.close()
    text = "".join(f"{words(i)}\n" for i in range(12, 24) if i % 10 != 9).encode()
    assert bytes(wanted[0][1].tolist()) == text[:16]
    assert bytes(wanted[1][1].tolist()) == text[16:32]
    for world in (2, 4):
        parts = [task(data, rank, world) for rank in range(world)]
        for step in range(3):
            found = torch.stack([part.stream.next()[0] for part in parts], 1)
            assert torch.equal(found.flatten(0, 1), wanted[step])
        state = parts[0].stream.state_dict()
        single = task(data)
        single.stream.load_state_dict(state)
        assert torch.equal(single.stream.next()[0], wanted[3])
    assert alone.held_out.read(0, 8).tobytes() == b"text 100"
    loss = alone.loss(alone.model, alone.stream.next())
    assert loss.isfinite()
    alone.close()


def test_a_stream_of_pictures(folder):
    """Endless, with classes and something to score on; what it cannot do is named."""
    data = {"path": f"hf-stream:parquet:{folder}", "size": 8, "crop": 0, "flip": False}
    made = task(data, kind="images", model=PICTURES)
    images, targets = made.stream.next()
    numbers = [12 * reader for reader in range(8)]
    assert images.shape == (8, 3, 8, 8)
    assert targets.argmax(1).tolist() == [number % 2 for number in numbers]
    assert len(made.held_out) == 20
    for _ in range(20):  # past the end of every reader
        made.stream.next()
    shares = [task(data, rank, 2, "images", PICTURES).stream.next()[0] for rank in range(2)]
    assert torch.equal(torch.stack(shares, 1).flatten(0, 1), images)
    for setting in ("mixup", "cutmix", "balance"):
        with pytest.raises(ValueError, match=f"data.{setting} must be 0"):
            task({**data, setting: 0.5}, kind="images", model=PICTURES)
    with pytest.raises(ValueError, match=r"say with data\.max_images"):
        task({"path": data["path"], "size": 8}, kind="pixels", model=TEXT)


def test_a_stream_with_nothing_to_score_on(tmp_path):
    """Is refused, with what to name."""
    table(range(20)).to_parquet(tmp_path / "train-0.parquet")
    for kind, model in (("bytes", TEXT), ("images", PICTURES)):
        with pytest.raises(ValueError, match=r"to score on; name other .*--data\.valid"):
            task({"path": f"hf-stream:parquet:{tmp_path}"}, kind=kind, model=model)


def test_a_damaged_picture_of_a_stream_is_named(tmp_path):
    """It cannot be left out without changing every place after it."""
    table(range(20), broken=[3]).to_parquet(tmp_path / "train-0.parquet")
    table(range(4)).to_parquet(tmp_path / "test-0.parquet")
    made = task({"path": f"hf-stream:parquet:{tmp_path}", "size": 8}, 0, 1, "images", PICTURES)
    with pytest.raises(ValueError, match=r"picture 3 of hf-stream:.* cannot pass over it"):
        made.stream.next()


def test_indices_of_a_data_set_are_minded():
    """A split that was chosen from others reads its own rows."""
    from foveal.data.hub_texts import HubTexts

    chosen = table(range(40)).select(np.array([30, 2, 11, 11]))
    texts = HubTexts(chosen, "text", "chosen")
    out = np.empty(len(texts), np.uint8)
    texts.read_into(out, 0)
    assert out.tobytes().decode() == "".join(f"{words(i)}\n" for i in (30, 2, 11, 11))
