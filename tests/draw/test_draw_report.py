"""The report: one HTML file that needs nothing else, whatever a model wrote into it."""

import base64
import re
from html.parser import HTMLParser

import pytest

from foveal.draw.confusion import draw_confusion
from foveal.draw.curves import Curve, draw_bars, draw_curves, smooth
from foveal.draw.report import Section, write_report
from foveal.draw.style import shown


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that tags are closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.attributes, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *attr) for attr in attrs]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(path):
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert not reader.open
    return reader


@pytest.fixture
def picture(tmp_path):
    return draw_bars({"a": 1.0, "b": 2.0}, tmp_path / "bars.png", xlabel="x")


def test_a_report_is_complete_and_self_contained(tmp_path, picture):
    """Everything given appears, pictures are inlined, and nothing is loaded from elsewhere."""
    path = write_report(
        tmp_path / "report.html",
        title="A title",
        subtitle="a subtitle",
        headline={"score": "1.23"},
        sections=[
            Section("Pictures", note="A note.", pictures=[("a caption", picture)]),
            Section("Table", rows={"label": "value"}),
            Section("Samples", samples=[("def ", "f(x):\n    return x")]),
            Section("Code", code='{"a": 1}'),
        ],
    )
    page = read(path)
    for words in ("A title", "a subtitle", "1.23", "A note.", "a caption", "value", '{"a": 1}'):
        assert words in page.text
    assert "f(x):\n    return x" in page.text
    sources = [value for tag, name, value in page.attributes if name in ("src", "href")]
    assert len(sources) == 1
    assert base64.b64decode(sources[0].split(",", 1)[1]) == picture.read_bytes()
    assert not re.search(r"https?://", path.read_text())


def test_what_a_model_writes_is_text_and_never_markup(tmp_path):
    """Samples cannot close tags, run scripts or hide characters."""
    evil = "</pre><script>alert(1)</script>\x00\x1b[31m\u202e & \udcff"
    path = write_report(
        tmp_path / "report.html",
        title="<b>t</b>",
        subtitle="",
        headline={},
        sections=[Section("s", samples=[(evil, evil)])],
    )
    page = read(path)
    assert "<script>alert(1)</script>" in page.text
    assert not any(tag == "script" for tag, *_ in page.attributes)
    assert not set("\x00\x1b\u202e") & set(path.read_text())


def test_a_report_is_replaced_in_one_step(tmp_path):
    """Writing again leaves one file."""
    for title in ("one", "two"):
        write_report(tmp_path / "r.html", title=title, subtitle="", headline={}, sections=[])
    assert "two" in (tmp_path / "r.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_smoothing_follows_the_values():
    """A constant stays itself, few values are left alone, noise shrinks."""
    assert smooth([3.0] * 50) == pytest.approx([3.0] * 50)
    assert smooth([1.0, 5.0, 2.0]) == [1.0, 5.0, 2.0]
    assert smooth([]) == []
    noisy = [(-1.0) ** i for i in range(300)]
    assert abs(smooth(noisy)[-1]) < 0.1


@pytest.mark.parametrize(
    "names", [["$\\frac$", "$5 and $6"], ["a" * 3000, "b\n\x1b[2J\t"], ["\u732b", "\ud800"]]
)
def test_names_of_classes_are_no_formulas(tmp_path, names):
    """Dollars, control characters, half a letter, long and foreign names: no warning."""
    path = draw_confusion([[1, 2], [3, 4]], names, tmp_path / "confusion.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [len(shown(name)) <= 34 for name in names] == [True, True]
    assert shown("$a$") == r"\$a\$"
    assert shown("caf\u00e9") == "caf\u00e9"


@pytest.mark.parametrize("count", [1, 2, 50])
def test_curves_of_any_length_are_drawn(tmp_path, count):
    """One point, a few or many, a steep start included."""
    x = list(range(count))
    y = [100.0 / (i + 1) for i in x]
    curves = [Curve("", x, y, "faint"), Curve("a", x, y), Curve("b", x[:1], y[:1], "points")]
    path = draw_curves(curves, tmp_path / "c.png", xlabel="x", ylabel="y", title="t")
    assert path.read_bytes().startswith(b"\x89PNG")
