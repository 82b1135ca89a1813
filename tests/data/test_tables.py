"""Tables: separators, quotes, newlines in fields, JSON of other shapes, Parquet."""

import gzip
import json
import math
import sys

import pytest

from foveal.data.tables import BadRowError, read_rows, text_of


def rows(path, *columns):
    return [row for _, row in read_rows(path, columns)]


def write(tmp_path, name, raw):
    (tmp_path / name).write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    return tmp_path / name


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("a.csv", 'text,n\r\n"a, b",1\r\n"c\r\nd ""e""",2\r\n'),
        ("b.csv", 'text;n\n"a, b";1\n"c\r\nd ""e""";2\n'),
        ("c.csv", 'text|n\n"a, b"|1\n"c\r\nd ""e"""|2'),
        ("d.tsv", 'text\tn\na, b\t1\n"c\r\nd ""e"""\t2\n'),
        ("e.csv", '\ufefftext,n\n"a, b",1\n\n"c\r\nd ""e""",2\n'),
    ],
    ids=["comma", "semicolon", "bar", "tab", "mark and empty line"],
)
def test_separated_values(tmp_path, name, raw):
    """Separators and newlines within quotes are text, whatever separates the fields."""
    found = rows(write(tmp_path, name, raw), "text", "n")
    assert found == [{"text": "a, b", "n": "1"}, {"text": 'c\r\nd "e"', "n": "2"}]


def test_quotes_of_plain_tab_separated_text_are_letters(tmp_path):
    """Many write .tsv without quoting; a text that begins with a quote is no open field then."""
    path = write(tmp_path, "a.tsv", 'text\tn\n"Hello" she said\t1\n"never closed\t2\n')
    assert [row["text"] for row in rows(path)] == ['"Hello" she said', '"never closed']


@pytest.mark.parametrize("odd", ["\u2028", "\x85", "\x0c"])
def test_odd_separators_are_text(tmp_path, odd):
    """They end no row in any kind of table."""
    for name, raw in (
        ("a.csv", f"text,n\na{odd}b,1\n"),
        ("a.tsv", f"text\tn\na{odd}b\t1\n"),
        ("a.jsonl", json.dumps({"text": f"a{odd}b"}, ensure_ascii=False)),
        ("a.json", json.dumps([{"text": f"a{odd}b"}], ensure_ascii=False)),
    ):
        assert rows(write(tmp_path, name, raw), "text")[0]["text"] == f"a{odd}b"


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("a.csv", "text,n\na,b,1\n", "line 2 of .*3 fields.*header has 2"),
        ("a.csv", 'text,n\n"a,1\nb,2\n', "not ','-separated"),
        ("a.csv", 'text,n\n"a"b,1\n', "line 2 .*not ','-separated"),
        ("a.csv", "", "no header"),
        ("a.csv", "n,m\n1,2\n", "no column 'text', it has 'n', 'm'"),
        ("a.csv", "Text,n\n1,2\n", "did you mean 'Text'"),
        ("a.csv", "text,text\n1,2\n", "'text' twice"),
        ("a.json", '[{"text": "a", "text": "a"}]', "'text' twice in one object"),
        ("a.csv", "text,n\ncaf\xe9,1\n".encode("latin-1"), "line 2, column 4"),
        ("a.jsonl", '{"txt": "a"}\n', "no column 'text'"),
        ("a.jsonl", "", "no column 'text', it has none"),
        ("a.json", '{"text": "a"}', "list of JSON objects"),
        ("a.json", "[" * 100_000, "nested too deeply|not JSON"),
        ("a.json", "", "is not JSON"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, name, raw, words):
    """The file, and where it can be the line, is named; nothing is guessed."""
    with pytest.raises(ValueError, match=words) as caught:
        rows(write(tmp_path, name, raw), "text")
    assert "\n" not in str(caught.value)


def test_bad_lines_of_jsonl_are_named(tmp_path):
    """One bad line does not hide the others."""
    deep, twice = (
        "[" * 100_000,
        '{"text": "a", "n": 1, "text": "c"}\n{"text": "", "n": [{"m": 1, "m": 1}]}',
    )
    path = write(
        tmp_path, "a.jsonl", f'{{"text": "a"}}\nno\n[1]\n{deep}\n\n{{"text": "b"}}\n{twice}'
    )
    found = rows(path, "text")
    bad = [str(row) for row in found if isinstance(row, BadRowError)]
    assert [row["text"] for row in found if not isinstance(row, BadRowError)] == ["a", "b"]
    assert [message.split(" of ")[0] for message in bad] == [f"line {n}" for n in (2, 3, 4, 7, 8)]
    assert [bad[3].split(" has ")[1], bad[4].split(" has ")[1]] == ["'text' twice.", "'m' twice."]


@pytest.mark.parametrize("value", [True, ["a"], {"a": 1}, "\ud800", math.inf, -1e999])
def test_what_is_no_text_is_refused(value):
    """Lists, objects, truths and halves of characters are never written as text."""
    with pytest.raises(BadRowError, match=r"'x'.* in line 3"):
        text_of({"x": value}, "x", "line 3")
    assert [text_of({"x": v}, "x", "") for v in (None, float("nan"), 5, "a")] == ["", "", "5", "a"]


def test_huge_fields_and_packed_tables(tmp_path):
    """The csv module's limit of a field does not apply, and is left as it was."""
    import csv

    before = csv.field_size_limit()
    text = "long " * 60_000
    path = write(tmp_path, "a.csv.gz", gzip.compress(f"text\n{text}\n".encode()))
    assert rows(path, "text") == [{"text": text}]
    assert csv.field_size_limit() == before


def test_parquet(tmp_path, monkeypatch):
    """With pyarrow the column is read; without it, one line says what to install."""
    path = write(tmp_path, "b.parquet", b"PAR1 and then nothing")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)
        with pytest.raises(ValueError, match=r"b\.parquet needs .*pip install pyarrow"):
            rows(path, "text")
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet is no readable \.parquet"):
        rows(path, "text")
    table = pyarrow.table({"text": ["a", None, "b\nc"], "n": [1, 2, 3]})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert rows(tmp_path / "a.parquet", "text") == [{"text": t} for t in ("a", None, "b\nc")]
    with pytest.raises(ValueError, match="no column 'txt', it has 'text', 'n'; did you mean"):
        rows(tmp_path / "a.parquet", "txt")
