"""Locks: one holder at a time, gone with its process, and what happens without a system's help."""

import errno
import os
import signal
import subprocess
import sys
import threading

import pytest

from foveal.common import locks
from foveal.common.locks import FileLock, HeldError, is_alive, locked, thread_lock

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def test_a_second_holder_is_refused_by_name(tmp_path):
    """Within a process, between threads and between processes, and free again after release."""
    lock = FileLock(tmp_path / ".lock")
    with pytest.raises(HeldError, match=f"in use by process {os.getpid()} on"):
        FileLock(tmp_path / ".lock")
    refused = []

    def try_it():
        try:
            FileLock(tmp_path / ".lock")
        except HeldError as error:
            refused.append(str(error))

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    assert len(refused) == 1
    code = f"from foveal.common.locks import FileLock; FileLock({str(tmp_path / '.lock')!r})"
    code = "import sys, pathlib; " + code.replace("FileLock('", "FileLock(pathlib.Path('") + ")"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert f"HeldError: {tmp_path} is in use by process {os.getpid()}" in other.stderr
    lock.release()
    FileLock(tmp_path / ".lock").release()


@needs_fork
def test_it_dies_with_its_process_and_not_with_a_child(tmp_path):
    """SIGKILL frees it; children forked by the holder neither keep nor lose it."""
    ready, tell = os.pipe()
    process = os.fork()
    if not process:
        FileLock(tmp_path / ".lock")
        grandchild = os.fork()  # lives on after its parent's death
        if grandchild:
            os.write(tell, str(grandchild).encode())
        signal.pause()
    grandchild = int(os.read(ready, 20))
    with pytest.raises(HeldError, match=str(process)):
        FileLock(tmp_path / ".lock")
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    try:
        FileLock(tmp_path / ".lock").release()
    finally:
        os.kill(grandchild, signal.SIGKILL)


@needs_fork
def test_a_child_that_ends_leaves_the_lock_alone(tmp_path):
    """The end of a forked worker does not free what its parent holds."""
    lock = FileLock(tmp_path / ".lock")
    process = os.fork()
    if not process:
        lock.release()
        os._exit(0)
    os.waitpid(process, 0)
    with pytest.raises(HeldError):
        FileLock(tmp_path / ".lock")
    lock.release()


def test_a_folder_that_is_deleted_or_replaced_is_noticed(tmp_path):
    """Whoever holds a lock learns that the folder under it is another one."""
    (tmp_path / "run").mkdir()
    lock = FileLock(tmp_path / "run" / ".lock")
    assert lock.is_intact()
    os.rename(tmp_path / "run", tmp_path / "moved")
    assert not lock.is_intact()
    (tmp_path / "run").mkdir()
    other = FileLock(tmp_path / "run" / ".lock")
    assert other.is_intact()
    assert not lock.is_intact()
    lock.move(tmp_path / "moved" / ".lock")
    assert lock.is_intact()
    lock.release()
    other.release()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_of_the_system_the_name_decides(tmp_path, monkeypatch, code):
    """A living process is respected, a dead one is not, another machine's is named with a fix."""

    def flock(file, how):
        raise OSError(code, "no locks")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    path = tmp_path / ".lock"
    here = locks._this_process().partition(" on ")[2]
    path.write_text(f"process {os.getppid()} on {here}")
    with pytest.raises(HeldError, match=f"if that process is gone, delete {path}"):
        FileLock(path)
    path.write_text("process 1 on another-machine")
    with pytest.raises(HeldError, match="process 1 on another-machine"):
        FileLock(path)
    path.write_text(f"process {2**22 + 7} on {here}")
    FileLock(path).release()
    assert path.read_text() == ""


@pytest.mark.parametrize("content", ["", "\x00\xff", "process x on y", "process 1", "9" * 300])
def test_a_damaged_lock_file_locks_nobody_out(tmp_path, content):
    """What stands in the file matters only where the system has no locks."""
    path = tmp_path / ".lock"
    path.write_bytes(content.encode("latin-1"))
    FileLock(path).release()


def test_short_waits_let_everybody_through(tmp_path):
    """Ten threads that each read, add and write lose nothing; a lost lock does not stop them."""
    path = tmp_path / "count"
    path.write_text("0")

    def add():
        for _ in range(5):
            with locked(tmp_path / ".count.lock"):
                path.write_text(str(int(path.read_text()) + 1))

    threads = [threading.Thread(target=add) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() == "50"
    with locked(tmp_path / "no folder" / "x"):
        pass
    lock = FileLock(tmp_path / ".count.lock")
    with locked(tmp_path / ".count.lock", patience=0.05):
        pass
    lock.release()


def test_processes_are_known_to_live_or_not():
    """Our own, that of init, and numbers that belong to nobody."""
    assert is_alive(os.getpid())
    assert is_alive(1)
    assert not is_alive(2**22 + 7)
    assert not is_alive(10**17)


@needs_fork
@pytest.mark.parametrize("owner", ["a cache of calls", "the kernel's build", "an object"])
def test_a_lock_among_threads_is_free_in_a_forked_child(owner):
    """Whoever held it when the process forked does not live there."""
    from foveal.ops import known
    from foveal.ops.native import build

    class Own:
        def __init__(self):
            self.lock = thread_lock(self, "lock")

    own = Own()
    held = {
        "a cache of calls": lambda: known.CALLS._lock,
        "the kernel's build": lambda: build._LOCK,
        "an object": lambda: own.lock,
    }[owner]
    with held():
        child = os.fork()
        if not child:
            os._exit(0 if held().acquire(timeout=1) else 1)
    assert os.waitpid(child, 0)[1] == 0
