"""make gpu: on a CPU it says what it would do; its pieces name cases and files that there are."""

from __future__ import annotations

import json
from types import SimpleNamespace

import gpu
import pytest
import run
import torch

from foveal.bench import find
from foveal.bench.case import MODULES


@pytest.mark.skipif(torch.cuda.is_available(), reason="would spend the GPU")
def test_without_a_gpu_it_says_what_it_would_do(capsys):
    """Every piece, with the command that runs it."""
    assert gpu.main([]) == 0
    said = capsys.readouterr().out
    assert "no CUDA device" in said
    for piece in gpu.PIECES:
        assert piece.name in said
        assert piece.does in said
    with pytest.raises(SystemExit):
        gpu.main(["attension"])
    assert "attention-2" in capsys.readouterr().err


def test_each_piece_can_be_run(monkeypatch):
    """Scripts exist; each named case exists and makes sense on CUDA."""
    monkeypatch.setattr("foveal.bench.case.MODULES", [*MODULES])
    monkeypatch.setattr(run, "MODULES", __import__("foveal.bench.case").bench.case.MODULES)
    run.register()
    measured = set()
    for piece in gpu.PIECES:
        script, *options = piece.command
        if script == "-m":
            continue
        assert (gpu.ROOT / script).is_file()
        if script.endswith("run.py"):
            cases = find(options[: options.index("--device")])
            assert all("cuda" in case.devices for case in cases)
            measured |= {case.name for case in cases}
    ours = {case.name for case in find(["gpu-"])}
    assert ours <= measured


def test_a_piece_that_dies_costs_no_other(tmp_path, monkeypatch):
    """Its output is kept, and how it ended."""
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    said = []
    code = "print('so far'); import os; os.kill(os.getpid(), 9)"
    assert not gpu.run(gpu.Piece("dies", "dies", ("-c", code)), said.append)
    assert "so far" in (tmp_path / "dies.txt").read_text()
    assert "ended with -9" in said[0]
    monkeypatch.setattr(gpu, "MOST_SECONDS", 0.5)
    hangs = gpu.Piece("hangs", "hangs", ("-c", "import time; time.sleep(60)"))
    assert not gpu.run(hangs, said.append)
    assert "stopped after 0.5 s" in said[1]
    assert gpu.run(gpu.Piece("fine", "fine", ("-c", "")), said.append)


ALONE = {
    "a device": ("import pytest; pytest.skip('no cuda', allow_module_level=True)", 0, "no cuda"),
    "a package": ("import pytest; pytest.importorskip('nowhere')", 0, "import 'nowhere'"),
    "no test": ("test_nothing = None", 5, "no tests ran"),
    "an error": ("import nowhere", 2, "1 error"),
}


@pytest.mark.parametrize(("text", "code", "said"), ALONE.values(), ids=ALONE)
def test_a_file_that_is_skipped_whole_is_no_failure(text, code, said, tmp_path, capsys, request):
    """Run alone it ends with 0 and says why; that there is no test at all stays a failure."""
    path = tmp_path / "test_alone.py"
    path.write_text(f"{text}\n")
    conftest = request.config.pluginmanager.get_plugin(str(gpu.ROOT / "tests" / "conftest.py"))
    plugin = SimpleNamespace(pytest_sessionfinish=conftest.pytest_sessionfinish)
    options = [f"--rootdir={tmp_path}", f"--confcutdir={tmp_path}", "-p", "no:cacheprovider"]
    assert pytest.main([str(path), "-c", "/dev/null", *options], [plugin]) == code
    assert said in capsys.readouterr().out


def test_the_page_tells_what_was_measured(tmp_path):
    """The device by name, the outcome of each piece, a table a case; and when there is nothing."""
    assert gpu.NOTHING in gpu.page(tmp_path)
    (tmp_path / "self-check.txt").write_text("A GPU, 80 GiB\nflex window right\nended with 0\n")
    result = {"contender": "attend", "run": "forward", "seconds": 1e-3, "best": 1e-3}
    result |= {"times_peer": 2.5, "extra_bytes": None, "gflops": 10.0, "share_of_products": 0.5}
    about = {
        "machine": {"processor": "A GPU", "threads": 1, "torch": "2", "packages": {}, "date": "x"},
        "limits": {"float32": 1e12, "bfloat16": 1e12, "bytes": 1e12},
        "commit": "abc",
        "rounds": 1,
        "command": "python benchmarks/run.py",
    }
    record = {"case": "gpu-window-bf16", "title": "a window", "peer": "dense", **about}
    text = json.dumps({**record, "results": [result]})
    (tmp_path / "gpu-window-bf16-cuda.json").write_text(text)
    page = gpu.page(tmp_path)
    assert "| self-check |" in page
    assert "A GPU, 80 GiB" in page
    assert "| attend | 1 ms | 2.50 |" in page


def test_the_published_page_fits_the_results():
    """docs/gpu.md is what benchmarks/gpu.py makes of benchmarks/results/gpu."""
    assert gpu.PAGE.read_text("utf-8") == gpu.page()
