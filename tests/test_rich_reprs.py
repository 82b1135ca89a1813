"""What notebooks show: tables that are escaped, read on any ground, and load nothing."""

from __future__ import annotations

import ast
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

import foveal
from foveal import parallel
from foveal import patterns as P
from foveal.bench.attention import pattern_case
from foveal.bench.result import Result
from foveal.bench.table import Results
from foveal.caches.attention import AttentionCache
from foveal.caches.fixed import FixedCache
from foveal.caches.pyramid import PyramidCache
from foveal.common import html
from foveal.common.words import in_bytes
from foveal.export.opened import OpenedProgram
from foveal.recipes.beside import Continuations
from foveal.recipes.config import load_recipe
from foveal.recipes.exporting import Written
from foveal.recipes.images.look import PredictedBeside, Prediction
from foveal.recipes.kind import Run
from foveal.recipes.pixels.kind import Drawing
from foveal.recipes.score import Score
from foveal.training.trainer import Outcome

ROOT = Path(__file__).parents[1]
HOSTILE = '<script>alert("x")</script><img src=x onerror=a()> & \x1b[2J\u202e'
WINDOW = P.SlidingWindow(4)


def model():
    sizes = {"num_tokens": 9, "dim": 8, "depth": 3, "heads": 2, "dim_head": 4, "max_seq_len": 32}
    return foveal.TransformerLM(**sizes, pattern=[WINDOW, WINDOW, P.Strided(3)])


def state():
    return model().prefill(torch.zeros(1, 20, dtype=torch.long))[1]


def fixed():
    cache = AttentionCache(WINDOW, 1, 2, 4).prefill(*torch.zeros(2, 1, 2, 7, 4))
    return FixedCache(cache, 12, torch.tensor(7), {})


def benched():
    found = Results(pattern_case("small", HOSTILE, WINDOW, 200, contenders=("tiled", "dense")))
    found += [Result("tiled", "forward", 0.002, 0.001, 2.5), Result("dense", "forward", 0.005, 1)]
    return found


ABOUT = {
    "family": HOSTILE,
    "dtype": "float32",
    "weights": "c0ffee",
    "foveal": "0.1",
    "torch": "2.13",
    "deviation": 3e-7,
    "inputs": [
        {"name": "tokens", "dtype": "int64", "shape": [[1, None], [2, 4096], 7],
         "sizes": ["batch", "length", HOSTILE], "tokens": 2560},
    ],
}  # fmt: skip
TOLD = (
    *("batch 1 or more, length 2 to 4096", "each below 2,560", "by 3.0e-07 at most", "c0ffee"),
    *("float32", "foveal 0.1, torch 2.13"),
)


def run():
    return Run(Path(HOSTILE), load_recipe("images-halonet"))


EXAMPLES = {
    "Explanation": (
        lambda: foveal.explain(WINDOW, 1000, softcap=True),
        ("3,994", "1,000,000", "0.399%", "pairs computed", "dense", "soft-capped", "1,000 keys"),
    ),
    "Volume": (
        lambda: parallel.explain(P.SlidingWindow(100), 4096, 4),
        ("4,096 tokens on 4 ranks", "99 tokens", "203 kB", "6.29 MB", "3.22%", "Ulysses"),
    ),
    "Cost": (lambda: foveal.cost(model(), 16), ("parameters", "2,713", "GFLOP", "decoding state")),
    "Score": (
        lambda: Score(
            {"accuracy": 0.51234, "images": 1200, "confusion": [[1]]}, HOSTILE, "c0ffee", 3.2, "w"
        ),
        ("accuracy", "0.5123", "1,200", "c0ffee"),
    ),
    "Outcome": (
        lambda: Outcome(1200, 90.0, {HOSTILE: 0.25}, Path("run/step-1200")),
        ("1,200", "1.5", "0.25", "step-1200"),
    ),
    "Prediction": (
        lambda: Prediction(HOSTILE, [(HOSTILE, 0.75), ("dog", 0.2)]),
        ("dog", "75%", "20%"),
    ),
    "Continuations": (
        lambda: Continuations("def ", HOSTILE, "main():", 9, 4, 2e-5, 7.25, 0.5, False),
        ("def main():", "4 of 9 tokens are the same", "by 5.0e-01", "by 2.0e-05", "other weights"),
    ),
    "Run": (run, ("images-halonet", "HaloNet", "emoji")),
    "Model": (
        model,
        ("TransformerLM: 2,713 parameters", "to_logits", "SlidingWindow(window=4, causal=True)",
         "transformer.layers.0.attn to transformer.layers.1.attn", "Strided(stride=3"),
    ),
    "DecodingState": (
        state,
        ("20 tokens", "4 of 20 tokens", "Strided(stride=3", in_bytes(state().num_bytes)),
    ),
    "AttentionCache": (
        lambda: AttentionCache(P.Full(causal=True), 1, 2, 4).prefill(*torch.zeros(2, 1, 2, 7, 4)),
        ("7 of 7 tokens", "Full(causal=True)"),
    ),
    "PyramidCache": (
        lambda: PyramidCache(P.Pyramid(4, causal=True), 1, 2, 8, 64),
        ("levels of 8 clusters", "Pyramid("),
    ),
    "FixedCache": (fixed, ("after 7 tokens", "SlidingWindow(", "768 B")),
    "OpenedProgram": (lambda: OpenedProgram(Path(HOSTILE), print, ABOUT), TOLD),
    "Written": (
        lambda: Written(HOSTILE, "onnx", 1_200_000, "runs/mine", ABOUT),
        (*TOLD, "runs/mine", "1.2 MB", "onnx"),
    ),
    "Results": (benched, ("tiled", "2 ms", "2.50 x", "1 (peer)", "forward")),
}  # fmt: skip
"""By class: how to come by one, and what its table must tell."""


class Reader(HTMLParser):
    """Checks that tags close in order; gathers the text and what was seen of tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.text, self.tags, self.attributes = [], "", Counter(), []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.tags[tag] += 1
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(page: str) -> Reader:
    """The page, after what holds for every one of them has been checked."""
    reader = Reader(page)
    assert reader.open == []
    allowed = {"table", "caption", "thead", "tbody", "tr", "th", "td", "span", "div"}
    assert set(reader.tags) <= allowed
    assert {name for name, _ in reader.attributes} <= {"style", "scope"}
    assert "url(" not in page
    # of the ground and of letters: what the notebook has; lines and bars are seen on both
    colours = re.findall(r"(?:color|background):([^;\"]+)", page)
    assert set(colours) <= {"inherit", "transparent", "#3a86c8"}
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e]", page)
    return reader


@pytest.mark.parametrize("name", EXAMPLES)
def test_tables_of_results(name):
    """Each table tells what it is about, whatever the names in it are."""
    make, told = EXAMPLES[name]
    page = make()._repr_html_()
    text = read(page).text
    assert [one for one in told if one not in text] == []
    if HOSTILE.replace("\x1b", "·").replace("\u202e", "·") in text:
        assert "&lt;script&gt;" in page


def test_a_program_stands_beside_its_model():
    """Classes that both were asked for, and how near they are."""
    beside = PredictedBeside({HOSTILE: 0.25, "dog": 0.5, "cat": 0.25}, 2e-5, 7.25, True)
    text = read(
        Prediction("a.png", [("dog", 0.75), (HOSTILE, 0.2)], "", beside)._repr_html_()
    ).text
    assert "modelexporteddog75%50%" in text
    assert text.endswith("20%25%the logits differ by 2.0e-05 at most, of logits up to 7.25")


def test_every_table_has_an_example():
    """No class of the package shows itself in a notebook without a test here."""
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text("utf-8")
        for node in ast.walk(ast.parse(text)) if "_repr_html_" in text else ():
            if isinstance(node, ast.ClassDef):
                methods = {one.name for one in node.body if isinstance(one, ast.FunctionDef)}
                found |= {node.name} if "_repr_html_" in methods else set()
    assert found == EXAMPLES.keys()


def test_plain_texts_are_as_ever():
    """A terminal shows what it did: the repr of a dataclass, of a module, and explain's lines."""
    cost = foveal.cost(model(), 16)
    assert repr(cost).startswith("Cost(length=16, parameters=2713, flops=")
    assert repr(model()).startswith("TransformerLM(\n  (token_emb): Embedding(9, 8)")
    lines = str(foveal.explain(WINDOW, 1000, softcap=True)).splitlines()
    assert lines[1] == "pairs        3,994 allowed of 1,000,000 (0.40%)"
    assert [line[:13].strip() for line in lines[:6]] == [
        "impl", "pairs", "visited", "forward", "score memory", "logits",
    ]  # fmt: skip
    assert repr(benched()).startswith("[Result(contender='tiled'")


def test_cells():
    """Numbers stand to the right with their digits in groups, shares have a bar, None is empty."""
    page = html.table(
        [
            ("a", 12345, 0.25, None, True),
            (HOSTILE, "two\nlines", html.Share(0.5), html.Share(7), 1),
        ],
        title=HOSTILE,
        head=("", HOSTILE, "b", "c", "d"),
        note=HOSTILE,
    )
    reader = read(page)
    assert reader.tags["tr"] == 3
    assert reader.text.count("·[2J·") == 4
    assert "two\nlines" in reader.text
    assert page.count("text-align:right") == 3  # not the bool
    assert ">12,345<" in page
    assert ">0.25<" in page
    assert ">50%<" in page
    widths = [float(one) for one in re.findall(r"width:([\d.]+)em;background", page)]
    assert widths == [4.0, 8.0]  # a share of more than all has a whole bar
    assert html.table([]) == '<table style="' + page.split('"')[1] + '"><tbody></tbody></table>'
    assert read(html.facts({"x": None, "y": "", "z": 0})).text == "z0"


def test_a_drawing_is_shown_while_it_is_there(tmp_path):
    """A notebook shows the picture that a model drew, and its path where it has been deleted."""
    path = tmp_path / "drawn.png"
    assert Drawing(path)._repr_png_() is None
    path.write_bytes(b"\x89PNG")
    assert Drawing(path)._repr_png_() == b"\x89PNG"
    assert str(Drawing(path)) == str(path)


@pytest.mark.parametrize(
    ("size", "said"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_234_567, "1.23 MB"), (3e15, "3e+03 TB")],
)
def test_bytes_in_words(size, said):
    """Three digits, and the unit in which they are few."""
    assert in_bytes(size) == said
