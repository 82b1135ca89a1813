"""Checks a wheel as its user meets it: no compiler, nowhere to write, each class of processors.

    python tests/packaging/check_wheel.py dist/foveal-*.whl [the same wheel, made elsewhere]

Needs torch, takes the wheel apart into a folder of its own, and installs nothing.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

LARGEST = 3_000_000
FIRST_CALL = 0.05
TRIES = 5
"""Processes, each with a first call of its own, for what else a machine does only adds to one."""
LOWER = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "generic": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}
"""How a processor is made to look like one of a lower class."""

CODE = """
import sys, time
import torch, foveal
from foveal.common.processor import processor_class
from foveal.ops.native import build
q, k, v = torch.randn(3, 1, 8, 1024, 64)
pattern = foveal.patterns.SlidingWindow(64)
began = time.perf_counter()
out = foveal.attend(q, k, v, pattern)
took = time.perf_counter() - began
dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, pattern.mask(1024))
assert foveal.explain(pattern, 1024).impl == "native", foveal.explain(pattern, 1024)
assert torch.allclose(out, dense, atol=1e-5)
home, library = foveal.__file__, build.library()._name
assert home.startswith(sys.argv[1]) and library.startswith(sys.argv[1]), (home, library)
print(processor_class(), build.level(), f"{took:.4f}")
"""

OTHERS = """
from unittest import mock
import torch
from foveal.common import processor
from foveal.ops.native import build, flags
told = {"avx512+bf16": ("AVX512", {"avx512_bf16"}), "avx512": ("AVX512", set())}
told |= {"avx2": ("AVX2", None), "generic": ("DEFAULT", None)}
for wanted, (capability, more) in told.items():
    has = processor._AVX2_NEEDS | (set() if more is None else processor._AVX512_NEEDS | more)
    for one in (processor.processor_class, processor.multiplies_bfloat16):
        one.cache_clear()
    processor.runnable_classes.cache_clear()
    with (
        mock.patch("torch.backends.cpu.get_cpu_capability", lambda: capability),
        mock.patch("torch.cpu._is_avx512_bf16_supported", lambda: bool(more)),
        mock.patch.object(processor, "cpu_flags", lambda: has),
    ):
        assert build.level() == wanted, (build.level(), wanted)
        (path,) = build._kept_anywhere(wanted)
        assert path.parent == flags.BUILT, path
        build._open(path)  # what is in it is there, though not all of it could be run
print("chosen", "chosen", 0)
"""
"""Each class of x86-64, told by an emulation of what torch and the system say of a processor."""

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
CLASSES = {"aarch64": 1, "arm64": 1}.get(platform.machine(), 4)
"""Kernels in a wheel for such machines."""

PLACES = re.compile(
    rb"/(?:home|root|tmp|work|builds?|project|mnt|host|github|Users|private|opt|usr)/[\w./+-]+"
)
"""What tells of the machine that made it."""


def within(wheel: Path, other: Path | None) -> list[str]:
    """What is wrong with the files of a wheel: their size, their number, where they were made.

    `other`: a wheel that must hold the same.
    """
    wrong = [] if wheel.stat().st_size < LARGEST else [f"{wheel.stat().st_size:,} bytes"]
    held = {one.filename: one.CRC for one in zipfile.ZipFile(wheel).infolist()}
    kernels = [name for name in held if name.endswith(".so")]
    if len(kernels) != CLASSES:
        wrong.append(f"{len(kernels)} kernels in it, not {CLASSES}")
    for name in kernels:
        places = set(PLACES.findall(zipfile.ZipFile(wheel).read(name)))
        wrong += [f"{name} names {place.decode()}" for place in sorted(places)]
    if other:
        same = {one.filename: one.CRC for one in zipfile.ZipFile(other).infolist()}
        differ = sorted(name for name, _ in {*held.items()} ^ {*same.items()})
        wrong += [f"{name} is not that of {other}" for name in dict.fromkeys(differ)]
        if not differ and wheel.read_bytes() != other.read_bytes():
            wrong.append(f"not the bytes of {other}; was SOURCE_DATE_EPOCH set?")
    return wrong


def main(wheel: Path, other: Path | None = None) -> int:
    """Print what was found; 1 if anything is not as it should be."""
    wrong = within(wheel, other)
    with tempfile.TemporaryDirectory() as home:
        zipfile.ZipFile(wheel).extractall(home)
        nowhere = str(Path(home) / "nobin")
        bare = {
            **dict.fromkeys(("PATH", "HOME", "TMPDIR", "XDG_CACHE_HOME"), nowhere),
            "PYTHONPATH": home,
            "OMP_NUM_THREADS": str(min(2, CORES)),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        Path(nowhere).write_text("no folder")
        others = {**LOWER, "others": {}} if CLASSES > 1 else {}
        for name, held_back in {"as it is": {}, **others}.items():
            code = [sys.executable, "-c", OTHERS if name == "others" else CODE, home]
            for _ in range(TRIES):
                done = subprocess.run(
                    code, env={**bare, **held_back}, capture_output=True, text=True, check=False
                )
                said = done.stdout.split() or [done.stderr.strip().splitlines()[-1], "", "9"]
                if done.returncode or float(said[2]) <= FIRST_CALL:
                    break
            print(f"{name:10}", *said)
            if done.returncode or said[0] != said[1] or float(said[2]) > FIRST_CALL:
                wrong.append(f"{name}: {' '.join(said)}")
            if held_back and said[0] != name:
                wrong.append(f"{name} was asked for, got {said[0]}")
    print(*(wrong or [f"{wheel.name}: {wheel.stat().st_size:,} bytes, as it should be"]), sep="\n")
    return bool(wrong)


if __name__ == "__main__":
    os.umask(0o077)
    sys.exit(main(*map(Path, sys.argv[1:])))
