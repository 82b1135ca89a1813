"""Compiling the kernel once with the system's compiler, into the user's cache.

The kernel has a plain C interface, so one library serves every version of torch and Python. It is
compiled for one instruction set when it is first wanted, which takes a few seconds, and found
again by the hash of its source and its flags. Nothing is compiled at import.

FOVEAL_NATIVE=0 in the environment turns the kernel off; "avx512", "avx2" and "generic" pick an
instruction set. CXX names the compiler.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import torch

from foveal.common.processor import multiplies_bfloat16
from foveal.ops.native.abi import declare

HERE = Path(__file__).parent
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-ffp-contract=fast", "-fPIC", "-shared")
THREADING = (("-fopenmp",), ("-pthread",))

LEVELS = {
    "avx512": ("-march=x86-64-v4", "-DFOVEAL_WIDTH=16"),
    "avx2": ("-march=x86-64-v3", "-DFOVEAL_WIDTH=8"),
    "generic": ("-DFOVEAL_WIDTH=4",),
}
"""Instruction sets and their flags, fastest first."""

_LOCK = threading.Lock()


class NativeError(RuntimeError):
    """The kernel is not to be had here; the message says what lacks."""


def why_not() -> str | None:
    """What the kernel lacks here, or None if it is built or can be tried; compiles nothing."""
    setting = os.environ.get("FOVEAL_NATIVE", "")
    if setting == "0":
        return "FOVEAL_NATIVE=0 turns it off"
    if setting not in ("", "1", *LEVELS):
        return f"FOVEAL_NATIVE must be 0, 1, {', '.join(LEVELS)} or empty, got {setting!r}"
    wanted = level()
    if wanted in _loaded or wanted in _failure:
        return _failure.get(wanted)
    if _compiler() is None and not any(path.exists() for path, _ in _candidates(wanted)):
        return "no C++ compiler found (c++, g++, clang++ or $CXX)"
    return None


def level() -> str:
    """The widest instruction set of this processor, or the one that FOVEAL_NATIVE names."""
    setting = os.environ.get("FOVEAL_NATIVE", "")
    return setting if setting in LEVELS else _detected()


@functools.lru_cache(maxsize=1)
def _detected() -> str:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return "generic"
    found = torch.backends.cpu.get_cpu_capability()
    return {"AVX512": "avx512", "AVX2": "avx2"}.get(found, "generic")


def library() -> ctypes.CDLL:
    """The kernel, compiled if need be.

    Raises:
        NativeError: it is turned off, or there is no compiler that can build it.
    """
    if lacks := why_not():
        raise NativeError(lacks)
    return _load(level())


_failure: dict[str, str] = {}
_loaded: dict[str, ctypes.CDLL] = {}


def _load(wanted: str) -> ctypes.CDLL:
    found = _loaded.get(wanted)
    if found is None:
        with _LOCK:
            found = _loaded.get(wanted) or _find_or_build(wanted)
            _loaded[wanted] = found
    return found


def _find_or_build(wanted: str) -> ctypes.CDLL:
    candidates = _candidates(wanted)
    messages = []
    for path, _ in candidates:
        if path.exists():
            return _open(path)
    for path, flags in candidates:
        try:
            _compile(path, flags)
            return _open(path)
        except (OSError, subprocess.SubprocessError) as error:
            output = getattr(error, "stderr", None) or str(error)
            messages.append(output.strip().splitlines()[0] if output.strip() else str(error))
    _failure[wanted] = f"the compiler {_compiler()} failed: {messages[0]}"
    raise NativeError(_failure[wanted])


def _candidates(wanted: str) -> list[tuple[Path, tuple[str, ...]]]:
    """Where a library would lie and the flags that make it, best first."""
    found = []
    for threads in THREADING:
        flags = (*FLAGS, *LEVELS[wanted], *_extras(wanted), *threads)
        found.append((cache_folder() / f"{_key(flags)}.so", flags))
    return found


def _extras(wanted: str) -> tuple[str, ...]:
    return ("-mavx512bf16",) if wanted == "avx512" and multiplies_bfloat16() else ()


@functools.lru_cache(maxsize=8)
def _key(flags: tuple[str, ...]) -> str:
    parts = [path.read_bytes() for path in sorted(HERE.iterdir()) if path.suffix in (".cpp", ".h")]
    parts.append(" ".join((*flags, platform.system(), platform.machine())).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:20]


def cache_folder() -> Path:
    """Where compiled kernels lie: $XDG_CACHE_HOME/foveal/native."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "foveal" / "native"


def _compiler() -> str | None:
    return _search(os.environ.get("CXX"), os.environ.get("PATH"))


@functools.lru_cache(maxsize=4)
def _search(named: str | None, path: str | None) -> str | None:
    names = (named,) if named else COMPILERS
    return next(filter(None, (shutil.which(name, path=path) for name in names)), None)


def _compile(path: Path, flags: tuple[str, ...]) -> None:
    """Compile beside the final place and move there: other processes see all or nothing."""
    compiler = _compiler()
    if compiler is None:
        raise OSError("no C++ compiler found")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, draft = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(handle)
    command = [compiler, *flags, str(HERE / "attend.cpp"), "-o", draft]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        os.replace(draft, path)
    finally:
        Path(draft).unlink(missing_ok=True)


def _open(path: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(str(path))
    declare(found)
    return found
