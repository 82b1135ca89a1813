"""foveal bench and benchmarks/: cases are well formed, measured fairly, and told as they are."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import report
import run
import torch
import verify

from foveal.bench import Case, find, measure, table
from foveal.bench.attention import pattern_case
from foveal.bench.case import MODULES
from foveal.cli import main
from foveal.patterns import SlidingWindow

SMALL = pattern_case(
    "small", "a small window", SlidingWindow(16), 200, contenders=("tiled", "dense")
)


@pytest.fixture
def registered(monkeypatch):
    """All cases, those of benchmarks/ included."""
    monkeypatch.setattr("foveal.bench.case.MODULES", [*MODULES])
    monkeypatch.setattr(run, "MODULES", __import__("foveal.bench.case").bench.case.MODULES)
    run.register()


def test_every_case_is_complete(registered):
    """A case names at least two contenders, counts its work, and says what it computes."""
    cases = find([])
    assert {"window-8192", "halo-layer", "sepvit-step"} <= {case.name for case in cases}
    for case in cases:
        assert len(case.contenders) > 1
        assert len(case.title) > 20
        assert case.peer == case.contenders[-1]
        assert set(case.flops) <= set(case.runs)
    with pytest.raises(ValueError, match="no-such-case"):
        find(["no-such-case"])


def test_contenders_take_turns_and_are_related_to_the_peer():
    """Each round runs every contender once; ratios are of medians; shares refer to the limits."""
    limits = {"float32": 1e11, "bfloat16": 1e11, "bytes": 1e10}
    results = measure(SMALL, 3, limits=limits, memory=False)
    assert [(r.contender, r.run) for r in results] == [
        ("tiled", "forward"),
        ("dense", "forward"),
        ("tiled", "training"),
        ("dense", "training"),
    ]
    for result in results:
        assert len(result.rounds) == 3
        assert result.gflops > 0
        assert result.share_of_products > 0
    assert results[1].times_peer == 1
    text = "\n".join(table.lines(SMALL, results))
    assert "1 (peer)" in text


def test_a_contender_that_is_missing_is_left_out():
    """A peer that is not installed leaves the others measured, and is named."""

    def make(contender, run_name, device):
        if contender == "absent":
            raise ModuleNotFoundError(name="absent_package")
        return lambda: torch.zeros(1)

    said = []
    case = Case("partial", "one is there", ("here", "absent"), make, runs=("forward",))
    (result,) = measure(case, 1, memory=False, say=said.append)
    assert result.contender == "here"
    assert result.times_peer is None
    assert any("absent_package" in text for text in said)


def test_memory_is_that_of_one_call_in_a_fresh_process():
    """The memory of dense attention under a mask is measured apart from this process."""
    (case,) = find(["full-00512"])
    case = dataclasses.replace(case, contenders=("dense",), runs=("training",))
    (result,) = measure(case, 1)
    assert result.extra_bytes is not None
    assert 0 <= result.extra_bytes < 1e9


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks stay, but on Linux")
def test_memory_of_a_call_is_not_hidden_by_what_was_held_before(after_torch):
    """A mask that was made and dropped before a call does not count as room for the call.

    In a process of its own: others may have asked the C library to keep what is freed.
    """
    code = """
import torch
from foveal.bench.measure import extra_memory
held = torch.ones(60_000_000)
del held
print(extra_memory(lambda: torch.ones(20_000_000), "cpu") > 70e6)
"""
    assert after_torch(code).strip() == "True"


def test_the_command_prints_a_table(capsys, monkeypatch):
    """foveal bench names the machine, its limits and the cases; a misspelt case is one line."""
    limits = {"float32": 1e11, "bfloat16": 1e11, "bytes": 1e10}
    monkeypatch.setattr("foveal.bench.machine.limits", lambda device: limits)
    module = sys.modules["foveal.bench.measure"]
    monkeypatch.setattr(module, "fresh_memory", lambda *_: 2_000_000)
    assert main(["bench", "length-00128", "--device", "cpu", "--rounds", "1"]) == 0
    said = capsys.readouterr().out
    assert "limits measured now" in said
    assert "length-00128" in said
    assert "dense" in said
    assert main(["bench", "--list-cases"]) == 0
    assert "dalle-conv-11" in capsys.readouterr().out
    assert main(["bench", "widow"]) == 2
    assert "widow" in capsys.readouterr().err


def test_the_page_tells_where_we_lose():
    """docs/performance.md lists every contender of ours that is slower than its peer."""
    results = measure(SMALL, 1, memory=False)
    about = {
        "machine": {"processor": "x", "threads": 1, "torch": "2", "packages": {}, "date": "today"},
        "limits": {"float32": 1.0, "bfloat16": 1.0, "bytes": 1.0},
        "commit": "abc",
        "rounds": 1,
        "command": "python benchmarks/run.py",
    }
    for result in results:
        result.times_peer = 0.5 if result.contender == "tiled" else 1.0
    record = json.loads(json.dumps(run.record(SMALL, results, about)))
    text = report.page([record])
    assert "small, forward: tiled has 0.50 of the speed of dense" in text
    assert "| tiled |" in text


def test_the_published_page_fits_the_results():
    """docs/performance.md is what benchmarks/verify.py makes of benchmarks/results."""
    assert verify.PAGE.read_text("utf-8") == report.page()


def test_nothing_is_published_while_tests_fail(tmp_path, monkeypatch):
    """A red test leaves the page as it was."""
    monkeypatch.setattr(verify, "PAGE", tmp_path / "performance.md")
    monkeypatch.setattr(verify, "tests_pass", lambda: False)
    monkeypatch.setattr("sys.argv", ["verify.py"])
    assert verify.main() == 1
    assert not verify.PAGE.exists()
