"""Batches that a thread reads ahead; the state stays that of what was consumed."""

from __future__ import annotations

import os
import threading
import weakref
from queue import SimpleQueue
from typing import Any, Protocol

THREAD = "foveal prefetch"
"""The name of the threads that read ahead."""


class _Stream(Protocol):
    def next(self) -> Any: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Prefetched:
    """A stream whose next batches a thread reads while the last one is worked on.

    It deals what the stream would deal, to the bit: a batch depends on its place alone, and the
    state is the position of what has been consumed, however much has been read ahead. What goes
    wrong in the thread is raised where its batch would have come. The thread begins with the first
    batch, and ends with `close`, with this object, or with the process; in a forked child another
    one reads.

    Args:
        stream: what is read; nobody else may use it meanwhile.
        ahead: batches that are read ahead at most, at least 1.
    """

    def __init__(self, stream: _Stream, ahead: int = 2) -> None:
        if ahead < 1:
            raise ValueError(f"ahead must be at least 1, got {ahead=}.")
        self.stream, self.ahead = stream, ahead
        self._state = stream.state_dict()
        self._reader: _Reader | None = None
        self._stop: Any = None

    def next(self) -> Any:
        """The next batch of this process."""
        if self._reader is None or not self._reader.is_of_this_process():
            self._start()
        assert self._reader is not None
        batch, error, self._state = self._reader.take()
        if error is not None:
            self.close()  # whoever asks again gets what follows
            raise error
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The position in the data behind the last batch that was consumed."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue at a saved position; errors are those of the stream."""
        self.close()
        self.stream.load_state_dict(state)
        self._state = self.stream.state_dict()

    def close(self) -> None:
        """End the thread; what it has read ahead is read again if somebody asks for it."""
        if self._reader is not None:
            self._stop()
            self._reader = None

    def _start(self) -> None:
        self.close()
        self.stream.load_state_dict(self._state)
        self._reader = _Reader(self.stream, self.ahead)
        self._stop = weakref.finalize(self, self._reader.stop)


class _Reader:
    """The thread. It knows nothing of the object that it reads for, whose end is its own."""

    def __init__(self, stream: _Stream, ahead: int) -> None:
        self._stream, self._process = stream, os.getpid()
        self._slots, self._stopped = threading.Semaphore(ahead), False
        self._read: SimpleQueue[tuple[Any, BaseException | None, dict[str, Any]]] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=THREAD, daemon=True)
        self._thread.start()

    def is_of_this_process(self) -> bool:
        """False in a forked child, which has the object and not the thread."""
        return self._process == os.getpid()

    def take(self) -> tuple[Any, BaseException | None, dict[str, Any]]:
        """A batch, or what went wrong with it, and the position behind it."""
        found = self._read.get()
        self._slots.release()
        return found

    def stop(self) -> None:
        """End the thread and wait for its end."""
        if not self.is_of_this_process():  # whatever it held when the process forked, it holds
            return
        self._stopped = True
        self._slots.release()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        error: BaseException | None = None
        while error is None:
            self._slots.acquire()
            if self._stopped:
                return
            batch = None
            try:
                batch = self._stream.next()
            except BaseException as raised:
                error = raised
            self._read.put((batch, error, self._stream.state_dict()))
