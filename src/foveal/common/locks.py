"""Locks that die with the process that holds them, so that a kill leaves nothing locked."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
_held: set[FileLock] = set()
_owners: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()


class HeldError(ValueError):
    """Somebody else holds the lock; the message says who, as far as that is known."""


class FileLock:
    """An exclusive lock on a file, held from construction to `release` or the process's end.

    The system takes it back whatever ends the process. The file stays, and holds the name of the
    process that took it last. Where the file system has no such locks (some network mounts,
    Windows), that name is all there is: the lock is refused while a process of that number lives
    on this machine, and always if another machine took it and never gave it back.

    Args:
        path: the file; its folder must exist.

    Raises:
        HeldError: another process, or another lock of this one, has it.
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        while self._file is None:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                self._by_name = not _take(file)
                if self._by_name:
                    _refuse_if_alive(path, _holder(file))
            except BaseException as error:
                holder = _holder(file)
                os.close(file)
                if isinstance(error, BlockingIOError):
                    raise HeldError(f"{path.parent} is in use by {holder}.") from None
                raise
            if _same_file(file, path):  # nobody put another file there in the meantime
                self._file = file
            else:
                os.close(file)
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        os.write(self._file, _this_process().encode())
        _held.add(self)

    def is_intact(self) -> bool:
        """Whether the locked file is still at its place: nobody deleted or replaced its folder."""
        return self._file is not None and _same_file(self._file, self.path)

    def move(self, path: Path) -> None:
        """Tell the lock that its file has been renamed."""
        self.path = path

    def release(self) -> None:
        """Let others have it."""
        if self._file is not None:
            if self._by_name:
                os.ftruncate(self._file, 0)
            self._forget()

    def _forget(self) -> None:
        """Close the file, which gives the lock back unless a parent process holds it too."""
        file, self._file = self._file, None
        _held.discard(self)
        if file is not None:
            os.close(file)


@contextlib.contextmanager
def locked(path: Path, patience: float = 10.0) -> Iterator[None]:
    """Hold a lock for a moment, waiting for it if need be.

    After `patience` seconds, or where no lock can be had, it goes on without: for what must not
    stop anybody.
    """
    lock, deadline = None, time.monotonic() + patience
    while lock is None and time.monotonic() < deadline:
        try:
            lock = FileLock(path)
        except HeldError:
            time.sleep(0.01)
        except OSError:
            break
    try:
        yield
    finally:
        if lock is not None:
            lock.release()


def thread_lock(owner: Any, name: str) -> threading.Lock:
    """A lock among threads, which its owner keeps under `name`; a forked child gets a new one.

    There the thread that held the old one may not exist, and nobody would ever give it back.
    """
    _owners[owner] = name
    return threading.Lock()


def is_alive(process: int) -> bool:
    """Whether a process of this number runs on this machine, as far as one may know."""
    if os.name == "nt":  # there, asking is killing
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it belongs to somebody else
        return True
    return True


def _take(file: int) -> bool:
    """Take the system's lock; False where it has none, BlockingIOError where somebody has it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


def _refuse_if_alive(path: Path, holder: str) -> None:
    """Judge by the name in the file, where the system cannot."""
    words = holder.split()
    if len(words) != 4 or not words[1].isdigit() or holder == _this_process():
        return
    if words[3] != socket.gethostname() or is_alive(int(words[1])):
        raise HeldError(
            f"{path.parent} is in use by {holder}; if that process is gone, delete {path}."
        )


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _holder(file: int) -> str:
    os.lseek(file, 0, os.SEEK_SET)
    return os.read(file, 200).decode("utf-8", errors="replace") or "another process"


def _same_file(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except OSError:
        return False


def _leave_to_parent() -> None:
    """A forked child does not keep its parent's locks alive."""
    for lock in list(_held):
        lock._forget()
    for owner, name in list(_owners.items()):
        setattr(owner, name, threading.Lock())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
