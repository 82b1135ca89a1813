"""impl="triton": when it is picked, what it says elsewhere, and its kernels without a GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import foveal
from foveal import patterns as P
from foveal.ops import triton
from foveal.ops.triton import sizes

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
HALO = P.Halo(64, 8, 3)


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="test_triton.py runs on the GPU itself")
def test_kernels_in_the_interpreter():
    """All of test_triton.py holds on a CPU, where Triton interprets its kernels."""
    here = Path(__file__).parent
    source = Path(foveal.__file__).parents[1]
    paths = [str(source), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)}
    env.pop("FOVEAL_IMPL", None)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(here / "test_triton.py")],
        env=env,
        cwd=here.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout


def test_it_is_chosen_for_a_window_bias_on_cuda(monkeypatch):
    """explain() names the kernels for relative positions, and where they are missing says so."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    told = foveal.explain(HALO, 4096, "cuda", torch.bfloat16, window_bias=True)
    assert told.impl == "triton"
    assert "relative positions" in told.reason
    assert foveal.explain(HALO, 4096, "cuda", torch.float64, window_bias=True).impl == "tiled"
    assert foveal.explain(HALO, 4096, "cuda").impl == "flex"
    assert foveal.explain(HALO, 4096, window_bias=True).impl in ("native", "tiled")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    told = foveal.explain(HALO, 4096, "cuda", torch.bfloat16, window_bias=True)
    assert told.impl == "tiled"
    assert "not installed" in told.alternatives["triton"]


def test_a_cpu_is_told_what_is_lacking(monkeypatch):
    """An explicit impl="triton" on a CPU raises and names what to use instead."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    q = torch.zeros(1, 1, 64, 8)
    with pytest.raises(ValueError, match=r"triton.*CUDA, not on cpu.*tiled"):
        foveal.attend(q, q, q, P.Halo(8), impl="triton")


def test_the_interpreter_has_no_bfloat16(monkeypatch):
    """Triton's interpreter multiplies bfloat16 wrongly, so it is refused there."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "bfloat16" in triton.why_not("cpu", torch.bfloat16, HALO, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [1, 16, 64, 100, 256])
@pytest.mark.parametrize("pattern", [HALO, P.Halo(9, 1, 0), P.Halo(64, 12, 2), P.Halo(9, 3, 2)])
def test_tile_sizes_suit_the_hardware(pattern, dim, dtype):
    """Sides are powers of two of at least 16, and a window's row fits in a step."""
    assert pattern.window[1] <= sizes.widest_window(dim, dtype)
    forward, query_gradient, key_gradient = sizes.tiles(dim, dtype)
    products = [sizes.padded(dim)]
    for tile in (forward, query_gradient):
        found = sizes.query_sides(pattern, tile)
        assert found["C"] >= pattern.window[1]
        products += [found["M"], found["R"] * found["C"]]
    found = sizes.key_sides(pattern, key_gradient)
    products += [found["M"], found["H"] * found["W"]]
    assert all(side >= 16 and side & (side - 1) == 0 for side in products)
