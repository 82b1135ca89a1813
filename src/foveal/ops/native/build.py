"""The kernel's library: that of the wheel, or compiled once into the user's cache.

The kernel has a plain C interface, so one library serves every version of torch and Python. Wheels
bring one for each class of processors. Elsewhere it is compiled for the class at hand when it is
first wanted, which takes some seconds, and found again by the hash of its source and its flags.
Nothing is compiled at import.

FOVEAL_NATIVE=0 in the environment turns the kernel off; the name of a class picks that class, and
one that the processor cannot run is refused. CXX names the compiler.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from foveal.common.cache import cache_folders, make_private
from foveal.common.locks import locked, thread_lock
from foveal.common.processor import processor_class, runnable_classes
from foveal.ops.native.abi import declare
from foveal.ops.native.flags import (
    BUILT,
    CLASSES,
    COMPILERS,
    SOURCE,
    THREADING,
    digest_of,
    flags_for,
    is_told_otherwise,
    key_for,
    name_for,
)

COMPILE_SECONDS = 120
OPENMP = "libgomp.so.1"

_LOCK = thread_lock(sys.modules[__name__], "_LOCK")


class NativeError(RuntimeError):
    """The kernel is not to be had here; the message says what lacks."""


def why_not() -> str | None:
    """What the kernel lacks here, or None if it is built or can be tried; compiles nothing."""
    setting = os.environ.get("FOVEAL_NATIVE", "")
    if setting == "0":
        return "FOVEAL_NATIVE=0 turns it off"
    if setting not in ("", "1", *CLASSES):
        return f"FOVEAL_NATIVE must be 0, 1, {', '.join(CLASSES)} or empty, got {setting!r}"
    wanted = level()
    if wanted not in runnable_classes():
        runs = ", ".join(runnable_classes())
        return f"this processor cannot run FOVEAL_NATIVE={wanted}, but {runs}"
    if wanted in _loaded or wanted in _failure:
        return _failure.get(wanted)
    if _compiler() is None and not _kept_anywhere(wanted):
        return "no C++ compiler found (c++, g++, clang++ or $CXX)"
    return None


def at_hand() -> bool:
    """Whether the kernel is there without being compiled."""
    if why_not() is not None:
        return False
    wanted = level()
    return wanted in _loaded or bool(_kept_anywhere(wanted))


def level() -> str:
    """The class of processors that the kernel is for: this one's, or what FOVEAL_NATIVE names."""
    setting = os.environ.get("FOVEAL_NATIVE", "")
    if setting in CLASSES:
        return setting
    return _best(processor_class(), runnable_classes())


@functools.lru_cache
def _best(first: str, runnable: tuple[str, ...]) -> str:
    return next(one for one in _from(first) if one in runnable)


def _from(first: str) -> list[str]:
    """`first` and the classes below it."""
    names = list(CLASSES)
    return names[names.index(first) :]


def library() -> ctypes.CDLL:
    """The kernel, compiled if need be.

    Raises:
        NativeError: it is turned off, or there is no compiler that can build it.
    """
    if not (_failure or os.environ.get("FOVEAL_NATIVE")):
        own = _loaded.get(_best(processor_class(), runnable_classes()))
        if own is not None:  # nothing else to ask, call after call
            return own
    if lacks := why_not():
        raise NativeError(lacks)
    wanted = level()
    found = _loaded.get(wanted)
    if found is None:
        with _LOCK:
            found = _loaded.get(wanted) or _find_or_build(wanted)
            _loaded[wanted] = found
    return found


def give_up(wanted: str, reason: str) -> None:
    """Do without the kernel of a class for the rest of the process."""
    _failure[wanted] = reason


_failure: dict[str, str] = {}
_loaded: dict[str, ctypes.CDLL] = {}


# -- finding ------------------------------------------------------------------------------------


def _find_or_build(wanted: str) -> ctypes.CDLL:
    if wanted in _failure:
        raise NativeError(_failure[wanted])
    return _first(_kept_anywhere(wanted)) or _build(wanted)


def _first(paths: list[Path]) -> ctypes.CDLL | None:
    """The first library that can be loaded."""
    for path in paths:
        try:
            return _open(path)
        except OSError:  # another system's, or a place that nothing may run from
            continue
    return None


def _folders() -> list[Path]:
    return cache_folders("native")


def _kept_anywhere(wanted: str) -> list[Path]:
    """Those that came with the package, then those that were compiled here."""
    here = [path for folder in _folders() for path in _kept(folder, wanted)]
    return [*_kept(BUILT, wanted, shipped=True), *here]


def _kept(folder: Path, wanted: str, shipped: bool = False) -> list[Path]:
    """The whole libraries of a class in a folder, best first.

    A name ends in a hash of the contents: to map a library that was cut short could kill the
    process, and what a disk or a copy has damaged is passed over.
    """
    keys = [_key(wanted, threads, shipped) for threads in THREADING]
    try:
        paths = [path for key in keys for path in sorted(folder.glob(f"{key}-*.so"))]
    except OSError:
        return []
    return [path for path in paths if _is_whole(path)]


def _is_whole(path: Path) -> bool:
    try:
        return path.is_file() and path.stem.rpartition("-")[2] == digest_of(path)
    except OSError:
        return False


@functools.lru_cache(maxsize=16)
def _key(wanted: str, threads: tuple[str, ...], shipped: bool = False) -> str:
    """What a library here is called; of those of a wheel, which serve many systems."""
    system = (platform.system(), platform.machine(), *(() if shipped else platform.libc_ver()))
    return key_for(wanted, threads, *system)


def _open(path: Path) -> ctypes.CDLL:
    """Load a library.

    Raises:
        OSError: it cannot be loaded here, or is no kernel.
    """
    if path.parent == BUILT:
        _share_openmp()
    found = ctypes.CDLL(str(path))
    try:
        declare(found)
    except AttributeError as error:
        raise OSError(f"{path} is no kernel of foveal: {error}") from None
    return found


def _share_openmp() -> None:
    """Let a library that came with the package find the OpenMP that torch has loaded."""
    own = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    with contextlib.suppress(
        OSError
    ):  # then the kernel is not loaded either, and is compiled here
        ctypes.CDLL(str(own[0]) if own else OPENMP, mode=ctypes.RTLD_GLOBAL)


# -- building -----------------------------------------------------------------------------------


def _build(wanted: str) -> ctypes.CDLL:
    reasons = []
    for folder, threads in itertools.product(_folders(), THREADING):
        try:
            _check_may_run(folder)
            make_private(folder)
            with locked(folder.with_name(".building"), COMPILE_SECONDS):  # once for all
                return _first(_kept(folder, wanted)) or _open(_compile(folder, wanted, threads))
        except (OSError, subprocess.SubprocessError) as error:
            reasons.append(_gist(error))
            if isinstance(error, subprocess.TimeoutExpired):
                break
    reasons.append("there is no folder to keep it in")
    give_up(wanted, f"it could not be built by {_compiler()}: {reasons[0]}")
    raise NativeError(_failure[wanted])


def _check_may_run(folder: Path) -> None:
    """Raise OSError where libraries cannot be loaded from a folder: it is mounted "noexec"."""
    place = next(one for one in (folder, *folder.parents) if one.exists())
    flag = getattr(os, "ST_NOEXEC", 0)
    if flag and os.statvfs(place).f_flag & flag:
        raise OSError(f"nothing may be run from {folder}")


def _compiler() -> str | None:
    return _search(os.environ.get("CXX"), os.environ.get("PATH"))


@functools.lru_cache(maxsize=4)
def _search(named: str | None, path: str | None) -> str | None:
    """The compiler's command line: CXX, which may hold options too, or the first there is."""
    if not named:
        return next(filter(None, (shutil.which(name, path=path) for name in COMPILERS)), None)
    if shutil.which(named, path=path):
        return shlex.quote(named)
    try:
        words = shlex.split(named)
    except ValueError:  # quotes that nobody closes
        return None
    return named if words and shutil.which(words[0], path=path) else None


def _compile(folder: Path, wanted: str, threads: tuple[str, ...]) -> Path:
    """Compile beside the final place and move there: other processes see all or nothing."""
    compiler = _compiler()
    if compiler is None:
        raise OSError("no C++ compiler found")
    handle, name = tempfile.mkstemp(suffix=".draft", dir=folder)
    os.close(handle)
    draft = Path(name)
    words = shlex.split(compiler)
    try:
        try:
            _run([*words, *flags_for(wanted, threads), str(SOURCE), "-o", name])
        except subprocess.CalledProcessError as error:
            if not is_told_otherwise(wanted, error.stderr):
                raise
            _run([*words, *flags_for(wanted, threads, lean=False), str(SOURCE), "-o", name])
        try:
            _open(draft)
        except OSError as error:  # it said that it was done
            said = str(error).replace(name, "its output")
            raise OSError(f"the compiler wrote no library ({said})") from None
        path = folder / name_for(_key(wanted, threads), draft)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def _run(command: list[str]) -> None:
    """Let a compiler work, and hear what it says."""
    subprocess.run(
        command,
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=COMPILE_SECONDS,
    )


def _gist(error: Exception) -> str:
    """The first line of what a compiler, or the system, said."""
    said = getattr(error, "stderr", None) or b""
    text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
    return next(iter((text.strip() or str(error)).splitlines()), type(error).__name__)
