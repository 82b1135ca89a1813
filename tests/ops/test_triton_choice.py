"""impl="triton": when it is picked, what it says elsewhere, and its kernels without a GPU."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch

import foveal
from foveal import patterns as P
from foveal.ops import WindowBias, triton
from foveal.ops.triton import sizes

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
HALO = P.Halo(64, 8, 3)


INTERPRETED = bool(os.environ.get("TRITON_INTERPRET"))
KERNELS = ("forward_kernel", "query_gradient_kernel", "key_gradient_kernel")


def interpreter_lacks() -> str | None:
    """What keeps Triton's interpreter from running loops, or None."""
    import numpy
    import triton as compiler

    versions = [tuple(map(int, one.__version__.split(".")[:2])) for one in (compiler, numpy)]
    if versions[0] < (3, 7) and versions[1] >= (2, 4):
        return "Triton before 3.7 interprets no loop with NumPy 2.4: it takes int() of arrays"
    return None


@pytest.mark.slow
@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="test_triton.py runs on the GPU itself")
def test_kernels_in_the_interpreter(after_torch):
    """All of test_triton.py holds on a CPU, where Triton interprets its kernels."""
    if reason := interpreter_lacks():
        pytest.skip(reason)
    here, source = Path(__file__).parent, Path(foveal.__file__).parents[1]
    # of the plugins of pytest that are installed these tests need one
    env = {**os.environ, "TRITON_INTERPRET": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    env.pop("FOVEAL_IMPL", None)
    options = ["-x", "-p", "no:cacheprovider", "-p", "pytest_timeout"]
    options += [str(here / "test_triton.py")]
    said = after_torch(
        "import os, sys, pytest\n"
        f"os.chdir({str(here.parents[1])!r})\n"
        f"sys.path.insert(0, {str(source)!r})\n"
        f"assert pytest.main({options}) == 0\n",
        env,
    )
    assert "passed" in said


@pytest.mark.usefixtures("unforced")
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


class Recorder:
    """Stands for a kernel and keeps the arguments of its launch."""

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return self.launch

    def launch(self, *arguments, **options):
        self.arguments, self.options = arguments, options


def stack_bytes(recorder, folder):
    """What a launch, compiled for sm_90, spills from its registers."""
    import triton as compiler
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kinds = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
    names = [param.name for param in recorder.kernel.params]
    given = dict(zip(names, recorder.arguments, strict=False))
    signature, constants, attributes = {}, {}, {}
    for place, name in enumerate(names):
        value = given.get(name, recorder.options.get(name))
        if name not in given or value is None:
            signature[name], constants[(place,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name] = kinds[value.dtype]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
        if isinstance(value, torch.Tensor) or name[-2:] in ("_b", "_h", "_n"):
            attributes[(place,)] = [["tt.divisibility", 16]]
    options = {k: v for k, v in recorder.options.items() if k not in names}
    source = ASTSource(recorder.kernel, signature, constants, attributes)
    compiled = compiler.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    binary = folder / "kernel.cubin"
    binary.write_bytes(compiled.asm["cubin"])
    command = [compiler.knobs.nvidia.cuobjdump.path, "-res-usage", str(binary)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(re.search(r"STACK:(\d+)", told.stdout + told.stderr)[1])


@pytest.mark.slow
@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="Triton was told to interpret")
@pytest.mark.parametrize("dim", [64, 128])
def test_kernels_compile_for_hopper(dim, monkeypatch, tmp_path):
    """Without a GPU the kernels still compile for one, and stay in its registers."""
    from foveal.ops.triton import kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    recorders = {name: Recorder(getattr(kernels, name)) for name in KERNELS}
    for name, recorder in recorders.items():
        monkeypatch.setattr(kernels, name, recorder)
    pattern = P.Halo(16, 8, 4)
    shapes = [(1, 2, 256, dim)] * 3 + [(1, 2, 256, 16)] * 2
    given = [torch.zeros(shape, dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
    bias = WindowBias(*given[3:])
    out, _ = triton.triton_attend(*given[:3], pattern, bias, None, dim**-0.5, 0.0)
    torch.autograd.grad(out.sum(), given)
    for recorder in recorders.values():
        assert stack_bytes(recorder, tmp_path) == 0
