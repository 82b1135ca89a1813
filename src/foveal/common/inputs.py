"""Whose fault an error is: what comes from outside is blamed by its name, in one line."""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from foveal.common.files import expanded, partial_path


class InputError(ValueError):
    """Something that was given cannot be used; the message says what and why."""


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Whatever goes wrong inside is the fault of `what`, which somebody gave us.

    Errors that were written for people pass as they are: a ValueError, an OSError with its file, a
    package that is not installed. Any other, which only says that something had an unexpected
    shape, becomes an InputError that names `what`.
    """
    try:
        yield
    except (UnicodeError, json.JSONDecodeError) as error:  # ValueErrors that name no file
        raise InputError(f"{what} cannot be used: {reason(error)}") from error
    except (ValueError, OSError, ImportError, FloatingPointError):
        raise
    except Exception as error:
        raise InputError(f"{what} cannot be used: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """What happened, for somebody who has not read the source."""
    text = " ".join(str(error).split())
    if is_out_of_memory(error):
        return "it needs more memory than there is."
    if isinstance(error, RecursionError):
        return "it is nested too deeply."
    if isinstance(error, OverflowError):
        return f"a number in it is too large ({text})." if text else "a number is too large."
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 text (byte {error.start:,} is 0x{error.object[error.start]:02x})."
    if isinstance(error, json.JSONDecodeError):
        return f"it is not valid JSON: {text}."
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror[0].lower()}{error.strerror[1:]}."
    if isinstance(error, KeyError):
        return f"it lacks {text}."
    if isinstance(error, ValueError | FloatingPointError | OSError):
        return text or type(error).__name__
    return f"it has not the form that is expected ({type(error).__name__}: {text})."


def is_out_of_memory(error: BaseException) -> bool:
    """Python's MemoryError, and torch's, which is a RuntimeError that says so in words."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in _OUT_OF_MEMORY)


# of torch on a GPU and on the CPU; the last where the number of bytes itself overflows
_OUT_OF_MEMORY = (
    "out of memory",
    "allocate memory",
    "not enough memory",
    "storage size calculation overflowed",
)


def has_lost_a_process(error: BaseException) -> bool:
    """Whether what failed is an exchange with another process, which is not there any more."""
    if type(error).__name__ in _LOST:
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("gloo/transport" in text or "NCCL" in text)


# of torch.distributed, which need not be loaded
_LOST = ("DistBackendError", "DistNetworkError", "DistStoreError")


def require_file(path: str | Path, what: str) -> Path:
    """A path as one that can be read to its end: no folder, and nothing that could wait for ever.

    Raises:
        ValueError: there is nothing, or a folder, a FIFO, a socket or a device.
    """
    path = expanded(path)
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # a zero byte in a path is a ValueError
        why = reason(error) if isinstance(error, OSError) else "it holds a zero byte."
        raise ValueError(f"{what} must be a file that exists, got {str(path)!r}: {why}") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "no ordinary file"
        raise ValueError(f"{what} must be a file, but {str(path)!r} is {kind}.")
    return path


def require_place(path: str | Path, what: str) -> Path:
    """A path as one that a file can be written to, told before the work that makes its contents.

    Raises:
        FileNotFoundError: there is no such folder.
        IsADirectoryError, FileExistsError: a folder or a device stands there.
        OSError: nothing can be written there.
    """
    path = expanded(path)
    given = f"{what}={str(path)!r}"
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of {given} does not exist; make it first.")
    if path.is_dir():
        raise IsADirectoryError(f"{given} is a folder; name a file in it.")
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{given} is no plain file; name another.")
    try:  # what `write_file` will begin with, so that nothing is left by whom a signal ends
        partial = partial_path(path)
        partial.touch()
        partial.unlink()
    except OSError as error:
        said = f"nothing can be written there ({error.strerror})"
        raise OSError(error.errno, said, str(path)) from None
    return path
