"""The kernel of a class that this processor lacks, put where the tests look for the kernel.

Of ARM by a cross compiler and an emulator, in processes of its own. Of AVX-512 in this one, by the
loader as it is: its vectors of sixteen floats are the compiler's own, which makes two of eight of
them for AVX2, and avx512/immintrin.h computes what the source asks of AVX512_BF16.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from emulated.remote import Remote, compile_driver
from foveal.ops.native import build, flags

HERE = Path(__file__).parent
STAND_IN = HERE / "avx512" / "immintrin.h"

ARM = ("aarch64-linux-gnu-g++", ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"])
"""Compiler and emulator; in Debian g++-aarch64-linux-gnu and qemu-user."""

WIDE = ("-march=x86-64-v3", "-DFOVEAL_WIDTH=16", "-Wno-psabi")
PAIRS = (
    "-D__AVX512BF16__",
    f"-I{STAND_IN.parent}",
    f"-DSTAND_IN={hashlib.sha256(STAND_IN.read_bytes()).hexdigest()[:8]}",  # names what is kept
)
LOWERED = {"avx512": WIDE, "avx512+bf16": (*WIDE, *PAIRS)}


def emulate(wanted: str, folder: Path, patch: pytest.MonkeyPatch) -> Remote | None:
    """Make `wanted` the class of the kernel for as long as `patch` holds; folder: for programs."""
    if wanted in LOWERED:
        patch.setitem(flags.CLASSES, wanted, LOWERED[wanted])
        runnable = (wanted, *build.runnable_classes())
        patch.setattr(build, "runnable_classes", lambda: runnable)
        patch.setenv("FOVEAL_NATIVE", wanted)
        return None
    compiler, emulator = ARM
    remote = Remote(compile_driver(folder, compiler, flags.CLASSES[wanted]), emulator)
    patch.setattr(build, "library", lambda: remote)
    patch.setattr(build, "why_not", lambda: None)
    return remote
