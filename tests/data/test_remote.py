"""Data behind an address: ranges by way of fsspec, and what goes wrong there, in one line."""

import sys

import numpy as np
import pytest
import torch

fsspec = pytest.importorskip("fsspec")

from fsspec.implementations.memory import MemoryFileSystem  # noqa: E402

from foveal.data import Prefetched, TextStream, open_corpus, open_tokens, remote  # noqa: E402
from foveal.data.blocks import BlockCache  # noqa: E402
from foveal.data.sources import find_text  # noqa: E402
from foveal.recipes.config import absolute_path, absolute_paths, config_from_dict  # noqa: E402
from foveal.recipes.kind import KindTask  # noqa: E402


class Faulty(MemoryFileSystem):
    """Files in memory behind ranges://; how they answer is up to the test."""

    protocol = "ranges"
    asked: list = []  # noqa: RUF012
    answer = staticmethod(lambda raw, start, end: raw[start:end])

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("ranges://", "memory://"))

    def unstrip_protocol(self, name):
        return "ranges:/" + name

    def cat_file(self, path, start=None, end=None, **kwargs):
        raw = super().cat_file(path)
        Faulty.asked.append((path, start, end))
        return Faulty.answer(raw, start, end)


@pytest.fixture(autouse=True)
def store(monkeypatch):
    """An empty store, and a cache of small blocks."""
    fsspec.register_implementation("ranges", Faulty, clobber=True)
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    Faulty.asked.clear()
    monkeypatch.setattr(Faulty, "answer", staticmethod(lambda raw, start, end: raw[start:end]))
    monkeypatch.setattr(remote, "BLOCKS", BlockCache(1 << 16, 512))
    monkeypatch.setattr("foveal.data.corpus.BLOCKS", remote.BLOCKS)
    files = fsspec.filesystem("memory")
    yield lambda name, raw: files.pipe(name, raw)
    MemoryFileSystem.store.clear()


WORDS = (b"the quick brown fox jumps over the lazy dog. " * 500)[:20_000]


@pytest.mark.parametrize("kind", ["memory", "ranges", "file"])
def test_windows_are_those_of_a_file_here(kind, store, tmp_path):
    """The same batches from memory://, another store and file:// as from the path, also ahead."""
    (tmp_path / "a.txt").write_bytes(WORDS)
    store("/data/a.txt", WORDS)
    where = f"file://{tmp_path}/a.txt" if kind == "file" else f"{kind}://data/a.txt"
    here, far = open_corpus(str(tmp_path / "a.txt")), open_corpus(where)
    assert [len(part) for part in here] == [len(part) for part in far]
    one, two = (TextStream(parts[0], 64, 4) for parts in (here, far))
    ahead = Prefetched(TextStream(far[0], 64, 4), 2)
    for _ in range(5):
        wanted, found, read = one.next(), two.next(), ahead.next()
        assert all(map(torch.equal, wanted, found))
        assert all(map(torch.equal, wanted, read))
    ahead.close()


def test_little_more_is_read_than_the_windows(store):
    """A batch asks for the blocks that its windows lie in, and for none twice."""
    store("/big.bin", bytes(1_000_000))
    train, _ = open_corpus("ranges://big.bin")
    Faulty.asked.clear()
    TextStream(train, 64, 4).next()
    assert len(Faulty.asked) <= 4
    assert sum(end - start for _, start, end in Faulty.asked) <= 4 * 2 * 512
    assert len(set(Faulty.asked)) == len(Faulty.asked)


def test_folders_globs_and_parts(store):
    """All texts below; parts by folders and by names; what is no text is counted."""
    for name, raw in (
        ("/set/train/a.txt", b"train a"),
        ("/set/train/b.txt", b"\xef\xbb\xbftrain b"),
        ("/set/dev/a.txt", b"valid"),
        ("/set/train/.hidden.txt", b"no"),
        ("/set/readme.md", b"no part"),
        ("/set/train/c.zip", b"PK\x03\x04"),
        ("/set/train/d.txt.gz", b"\x1f\x8b"),
        ("/set/train/e.txt", "no utf-8".encode("utf-16")),
        ("/plain/one.txt", b"one"),
        ("/plain/two.txt", b"two"),
        ("/wiki/wiki.train.tokens", b"train"),
        ("/wiki/wiki.test.tokens", b"test"),
    ):
        store(name, raw)
    with pytest.warns(UserWarning, match=r"1 \*\.gz .*1 \*\.txt .*1 \*\.zip.*1 file beside"):
        parts = find_text("memory://set")
    read = [[span.path.read(span.start, len(span)) for span in p] for p in (parts.train,)]
    assert read == [[b"train a", b"train b"]]
    assert [span.path.path.name for span in parts.valid] == ["a.txt"]
    assert [len(span) for span in find_text("memory://plain/*.txt").train] == [3, 3]
    assert not find_text("memory://plain").has_parts
    assert find_text("memory://wiki").test is not None


def test_tokens(store):
    """Raw ones and .npy."""
    whole = np.arange(3000, dtype=np.uint16)
    store("/t/a.bin", whole[:1000].tobytes())
    store("/t/b.bin", whole[1000:].tobytes())
    found = open_tokens("memory://t/*.bin", "uint16")
    assert found.read(990, 20).tolist() == list(range(990, 1010))
    inputs, targets = TextStream(found, 16, 4).next()
    assert torch.equal(inputs + 1, targets)


def refusal(call):
    with pytest.raises((ValueError, ModuleNotFoundError)) as found:
        call()
    text = str(found.value)
    assert "\n" not in text
    return text


def test_what_is_not_there(store, monkeypatch):
    """Nothing, an empty folder, an unknown kind, a package that is missing; each named."""
    store("/a/b.gz", b"\x1f\x8b")
    store("/a/empty.txt", b"")
    assert "the data must exist, got path='memory://none.txt'" in refusal(
        lambda: open_corpus("memory://none.txt")
    )
    assert "matches no file" in refusal(lambda: open_corpus("memory://a/*.md"))
    assert "is packed, and cannot be read in ranges" in refusal(
        lambda: open_corpus("memory://a/b.gz")
    )
    assert "must not be empty" in refusal(lambda: open_corpus("memory://a/empty.txt"))
    assert "Protocol not known: nowhere" in refusal(lambda: open_corpus("nowhere://x"))
    assert "column='text' is for tables on this machine" in refusal(
        lambda: find_text("memory://a", "text")
    )
    monkeypatch.setitem(sys.modules, "s3fs", None)
    assert "'s3://bucket/x' needs the package s3fs" in refusal(
        lambda: open_corpus("s3://bucket/x")
    )
    monkeypatch.setitem(sys.modules, "fsspec", None)
    text = refusal(lambda: open_corpus("s3://bucket/x"))
    assert text.endswith("needs the package fsspec, which is not installed: pip install fsspec")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            lambda raw, a, b: raw,
            "is not read in ranges: asked for 512 bytes its server sent 20,000",
        ),
        (lambda raw, a, b: raw[a : b - 1], "ended early: 511 of 512 bytes came from byte"),
        (lambda raw, a, b: b"", "ended early: 0 of 512 bytes"),
    ],
    ids=["all", "short", "nothing"],
)
def test_wrong_answers_are_named(answer, said, store, monkeypatch):
    """A server that knows no ranges, and one that breaks off."""
    store("/a.bin", WORDS)
    corpus, _ = open_corpus("ranges://a.bin")
    monkeypatch.setattr(Faulty, "answer", staticmethod(answer))
    assert said in refusal(lambda: corpus.read(15000, 10))


def test_a_store_that_fails_is_named(store, monkeypatch):
    """Whatever error it has, on one line, and without the password of its address."""

    def broken(raw, a, b):
        raise RuntimeError("no\nconnection")

    store("/a.bin", WORDS)
    corpus, _ = open_corpus("ranges://a.bin")
    monkeypatch.setattr(Faulty, "answer", staticmethod(broken))
    assert "ranges://a.bin cannot be read: no connection." in refusal(
        lambda: corpus.read(15000, 5)
    )
    file = remote.RemoteFile("ftp://me:secret@host/a", 5)
    assert str(file) == "ftp://host/a"


def test_a_file_that_changes_is_named(store, monkeypatch):
    """Another length at once; the same length when it is looked at again."""
    store("/a.bin", WORDS)
    corpus, _ = open_corpus("memory://a.bin")
    corpus.read(0, 10)
    store("/a.bin", WORDS[:9000])
    assert "had 20,000 bytes and has 9,000 now" in refusal(lambda: corpus.read(15000, 10))
    store("/b.bin", WORDS)
    corpus, _ = open_corpus("memory://b.bin")
    store("/b.bin", bytes(len(WORDS)))
    monkeypatch.setattr(remote, "LOOK_AGAIN", 0.0)
    assert "was written to while it was in use" in refusal(lambda: corpus.read(15000, 10))


def test_a_recipe_trains_on_it(store, tmp_path):
    """An address stays what it is among the settings, and gives the loss that the file gives."""
    (tmp_path / "a.txt").write_bytes(WORDS)
    store("/a.txt", WORDS)
    assert absolute_path("s3://b/{000..009}*.tar") == "s3://b/{000..009}*.tar"
    model = {"name": "TransformerLM", "dim": 8, "depth": 1, "heads": 1, "dim_head": 8}
    losses = []
    for where in (str(tmp_path / "a.txt"), "memory://a.txt"):
        table = {"model": model, "data": {"path": where, "context": 16}}
        config = config_from_dict({**table, "training": {"steps": 1, "prefetch": 1}}, "the test")
        task = KindTask(absolute_paths(config))
        losses.append(task.loss(task.model, task.stream.next()))
        task.close()
    assert losses[0] == losses[1]
