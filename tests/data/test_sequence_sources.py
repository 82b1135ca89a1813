"""Sequences with classes from every source, batched with the mask of what is real."""

import gzip
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from foveal.data.sequence_sources import open_sequences, sequences_to_score
from foveal.data.sequences import SequenceDataConfig, SequenceSet
from foveal.data.stream import Stream


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
    stream = Stream(data, batch_size=3, seed=1)
    stream.next()
    state = stream.state_dict()
    wanted = stream.next()
    again = Stream(data, batch_size=3, seed=1)
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


def put(root, files):
    for name, raw in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    return root


def rows(data):
    names = [data.classes[label] for label in data.labels.tolist()]
    return sorted(
        (bytes(row).decode(), name) for row, name in zip(data.sequences, names, strict=True)
    )


@pytest.mark.parametrize(
    ("names", "watched"),
    [("train valid test", "valid"), ("Train Dev Testing", "Dev"), ("training val TEST", "val")],
)
def test_parts_of_text_folders(tmp_path, names, watched):
    """The usual spellings are parts; watched on validation, scored on test."""
    files = {
        f"{p}/{c}/{n}.txt": f"{p} {c} {n}" for p in names.split() for c in "ab" for n in (0, 1)
    }
    train, valid = open_sequences(config(put(tmp_path, files)))
    scored = sequences_to_score(config(tmp_path))
    train_name, valid_name, test_name = names.split()
    for data, name in ((train, train_name), (valid, valid_name), (scored, test_name)):
        assert rows(data) == sorted((f"{name} {c} {n}", c) for c in "ab" for n in (0, 1))


def test_class_folders_of_any_text(tmp_path):
    """Packed, marked and wide texts are read as UTF-8; what is no text is counted."""
    put(
        tmp_path,
        {
            "a/1.txt": "\ufeffnaïve",
            "a/2.txt": "naïve".encode("utf-16"),
            "a/3.txt.gz": gzip.compress("naïve".encode()),
            "b/4.log": "naïve",
            "b/5": "naïve",
            "b/6.png": b"\x89PNG\0",
            "b/7.csv": "a,b",
            "b/._8.txt": b"\0\5\x16\7",
            "c/9.zip": b"PK\3\4",
            "README": "what it is",
        },
    )
    with pytest.warns(UserWarning, match="left out of") as told:
        train, test = open_sequences(config(tmp_path))
    assert [text for text, _ in rows(train) + rows(test)] == ["naïve"] * 5
    assert train.classes == ["a", "b"]
    for words in ("1 *.png", "1 *.csv", "1 class folder without texts (c)", "1 *.zip"):
        assert words in str(told[0].message)


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("t.csv", 'text,label\n"a, b",pos\nc,neg\nd,pos\ne,neg\n'),
        ("t.tsv", "text\tlabel\na, b\tpos\nc\tneg\nd\tpos\ne\tneg\n"),
        ("t.jsonl", '{"text":"a, b","label":"pos"}\n{"text":"c","label":"neg"}\n'
                    '{"text":"d","label":"pos"}\n{"text":"e","label":"neg"}'),
        ("t.json", '[{"text":"a, b","label":"pos"},{"text":"c","label":"neg"},'
                   '{"text":"d","label":"pos"},{"text":"e","label":"neg"}]'),
    ],
)  # fmt: skip
def test_tables(tmp_path, name, raw):
    """A text and a class in each row, in any kind of table; all of one that is scored."""
    put(tmp_path, {name: raw})
    train, test = open_sequences(config(tmp_path / name, held_out=0.5))
    expected = [("a, b", "pos"), ("c", "neg"), ("d", "pos"), ("e", "neg")]
    assert sorted(rows(train) + rows(test)) == expected
    scored = sequences_to_score(config("listops"), str(tmp_path / name), ["neg", "pos"])
    assert rows(scored) == expected
    assert rows(open_sequences(config(tmp_path, held_out=0.5))[0]) == rows(train)


def test_tables_as_parts_with_columns_of_other_names(tmp_path):
    """train.csv and test.csv beside each other; rows of classes that training lacks are told."""
    put(
        tmp_path,
        {
            "train.csv": "said,stars\ngood,5\nbad,1\n",
            "Test.csv": "said,stars\nfine,5\nodd,3\n,1\n",
            "other.csv": "x\n1\n",
        },
    )
    settings = config(tmp_path, column="said", label="stars")
    with pytest.warns(UserWarning, match="left out") as told:
        train, test = open_sequences(settings)
    assert (rows(train), rows(test)) == ([("bad", "1"), ("good", "5")], [("fine", "5")])
    for words in ("class '3', which training lacks", "1 row without said", "1 table beside"):
        assert words in str(told[0].message)


@pytest.mark.parametrize(
    "names",
    [
        "train.csv test.jsonl",
        "train.jsonl.gz test.jsonl",
        "Train.csv valid.json TEST.csv.gz",
        "imdb-train.tsv imdb-test.csv",
    ],
)
def test_parts_that_are_stored_in_several_ways(tmp_path, names):
    """What is called the test part is scored, and never trained on, whatever it is stored as."""
    for name in names.split():
        said = [(f"{name.lower()} {n}", "ab"[n % 2]) for n in range(4)]
        separator = "\t" if "tsv" in name else ","
        lines = [json.dumps({"text": text, "label": label}) for text, label in said]
        raw = "\n".join([f"text{separator}label", *(separator.join(one) for one in said)])
        if ".json" in name:
            raw = "\n".join(lines) if "jsonl" in name else f"[{','.join(lines)}]"
        packed = gzip.compress(raw.encode()) if name.endswith(".gz") else raw
        put(tmp_path, {name: packed, "stars.csv": "text,label\nx,a\n"})
    with pytest.warns(UserWarning, match=r"1 table beside the parts \(stars\.csv\)"):
        train, test = open_sequences(config(tmp_path))
    assert all("train" in text for text, _ in rows(train))
    assert not any("train" in text for text, _ in rows(test))
    assert (len(train), len(test)) == (4, 4)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ("text,stars\na,1\n", "no column 'label'"),
        ("text,label\ncaf\xe9,1\n".encode("latin-1"), "line 2, column 4"),
        ("text,label\n,1\n", "no rows"),
        ("text,label\na,1,2\n", "3 fields"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, raw, words):
    """The file is named, and what it lacks."""
    put(tmp_path, {"t.csv": raw})
    with pytest.raises(ValueError, match=words) as caught:
        open_sequences(config(tmp_path / "t.csv"))
    assert "t.csv" in str(caught.value)


@pytest.mark.parametrize(
    "values",
    ["0.5 1", "[1] 0", '"a" 1', "-1 0", "1e400 1", "true 1", "1.0 false", '"a" "\\ud800"'],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, values):
    """Fractions, lists, mixtures of texts, numbers and truths, negative ones, infinity, halves."""
    lines = [f'{{"text": "a", "label": {value}}}' for value in values.split()]
    put(tmp_path, {"t.jsonl": "\n".join(lines)})
    with pytest.raises(ValueError, match=r"labels of t\.jsonl, column 'label' must"):
        open_sequences(config(tmp_path / "t.jsonl"))


def test_held_out_data_are_a_setting(tmp_path):
    """With `valid` all of the data is trained on."""
    put(tmp_path, {f"x/{c}/{n}.txt": f"{c}{n}" for c in "ab" for n in range(3)})
    put(tmp_path, {"y/b/9.txt": "held out"})
    train, valid = open_sequences(config(tmp_path / "x", valid=str(tmp_path / "y")))
    assert len(train) == 6
    assert rows(valid) == [("held out", "b")]
    assert len(open_sequences(config(tmp_path / "x", max_examples=2))[0]) == 2
