"""How the kernel is compiled, for whoever does it: at first use, or when a wheel is made.

Imports nothing of foveal: a wheel is made where there is no torch.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

HERE = Path(__file__).parent
SOURCE = HERE / "attend.cpp"
BUILT = HERE / "built"
"""Kernels that came with the wheel, one for each class of processors."""

COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-ffp-contract=fast", "-fPIC", "-shared")
LEAN = ("-O2", "-ftree-vectorize", "-fvect-cost-model=dynamic", "-fipa-cp-clone")
"""What GCC is told instead of -O3 for `LEAN_CLASSES`: it compiles in less than half the time, to
code that was measured to be as fast. Other compilers do not know all of it."""
LEAN_CLASSES = ("avx2", "generic")
THREADING = (("-fopenmp",), ("-pthread",))[sys.platform == "darwin" :]
"""Best first. OpenMP's library is the one that torch has loaded, found by its name: threads of our
own would wait for a core on which torch's still look out for work (measured: up to 1.5 times). On
macOS torch brings a libomp that no compiler there links by itself, and a second runtime beside it
ends the process: there the kernel has threads of its own."""

CLASSES = {
    "avx512+bf16": ("-march=x86-64-v4", "-mavx512bf16", "-DFOVEAL_WIDTH=16"),
    "avx512": ("-march=x86-64-v4", "-DFOVEAL_WIDTH=16"),
    "avx2": ("-march=x86-64-v3", "-DFOVEAL_WIDTH=8"),
    "aarch64": ("-march=armv8-a", "-DFOVEAL_WIDTH=4"),
    "generic": ("-DFOVEAL_WIDTH=4",),
}
"""Classes of processors and the flags of a kernel for them, fastest first."""


def flags_for(wanted: str, threads: tuple[str, ...], lean: bool = True) -> tuple[str, ...]:
    """What a compiler is told for a class of processors.

    Args:
        threads: of `THREADING`.
        lean: as GCC knows it; a compiler that fails then is told again without.
    """
    level = LEAN if lean and wanted in LEAN_CLASSES else ("-O3",)
    told = [new for flag in FLAGS for new in (level if flag == "-O3" else (flag,))]
    return (*told, *CLASSES[wanted], *threads)


def is_told_otherwise(wanted: str, said: bytes) -> bool:
    """Whether a compiler for a class that failed, and what it said, does not know `LEAN`."""
    return wanted in LEAN_CLASSES and any(flag.encode() in said for flag in LEAN)


def key_for(wanted: str, threads: tuple[str, ...], *where: str) -> str:
    """Names what a library is made from and for: its source, its flags, and the system."""
    parts = [path.read_bytes() for path in sorted(HERE.iterdir()) if path.suffix in (".cpp", ".h")]
    parts.append(" ".join((*flags_for(wanted, threads), *where)).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


def name_for(key: str, library: Path) -> str:
    """The name that a library is kept under; it tells when the contents are no longer whole."""
    return f"{key}-{digest_of(library)}.so"


def digest_of(library: Path) -> str:
    """Of the contents of a library."""
    return hashlib.sha256(library.read_bytes()).hexdigest()[:20]
