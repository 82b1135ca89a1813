"""The folder of a training: looked for first, made only when there is something to train.

One training owns a folder, under a lock that dies with its process; only the owner tidies it. A
new folder appears in one step, with its config.json, so that two runs that start together never
take the same one, and a kill at the start leaves no empty one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from foveal.common.files import partial_path, remove_partials, sync, write_text
from foveal.common.locks import FileLock, HeldError
from foveal.recipes.config import absolute_paths, config_from_dict
from foveal.recipes.older import with_whole_batch
from foveal.recipes.runs import CHECKPOINTS, CONFIG, RUNS, choose_folder
from foveal.recipes.settings import RunConfig, first_difference
from foveal.training import checkpoints
from foveal.training.processes import from_first

if TYPE_CHECKING:
    from accelerate import Accelerator

LOCK, PICTURES = ".lock", "pictures"
_MOVES_OPEN_FILES = os.name != "nt"


class ClaimedFolder:
    """The folder of a run that is about to train; a context that gives it back at the end.

    All processes construct it and call `claim` together; the first one does the work.

    Args:
        config, output, resume: as in `foveal.recipes.run.train`.

    Attributes:
        path: the folder; of a new one under runs/ the number may still change until `claim`.
        last: the checkpoint to go on from, or None.

    Raises:
        ValueError: the folder is no place for this run: it holds one already, of other settings,
            or another training is using it. Nothing has been written then.
    """

    def __init__(
        self, config: RunConfig, output: str | None, resume: bool, accelerator: Accelerator
    ) -> None:
        self._config, self._resume, self._accelerator = config, resume, accelerator
        self._is_numbered = output is None
        self._output = output
        self._lock: FileLock | None = None
        self._is_claimed = False
        self.last: Path | None = None
        self.path, self.last = from_first(accelerator, self._look)

    def claim(self) -> Path:
        """Make the folder this run's own, with its config.json; the same one at every call."""
        if not self._is_claimed:
            self.path, self.last = from_first(self._accelerator, self._make)
            self._is_claimed = True
        return self.path

    def check(self) -> None:
        """Raise OSError if somebody has deleted the folder or put another in its place."""
        if self._lock is not None and not self._lock.is_intact():
            raise OSError(
                f"the run folder {self.path} was deleted or replaced while the run was training; "
                "nothing more is written there."
            )

    def __enter__(self) -> ClaimedFolder:
        return self

    def __exit__(self, *details: object) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _look(self) -> tuple[Path, Path | None]:
        """Choose the folder, and own it at once if a run is there to go on with."""
        self.path = choose_folder(self._config, self._output, self._resume)
        if (self.path / CONFIG).exists():
            self._own()
        return self.path, self.last

    def _make(self) -> tuple[Path, Path | None]:
        while self._lock is None:
            with contextlib.suppress(FileExistsError):  # somebody was quicker
                if not self.path.exists():
                    self._lock = _create(self.path, self._files())
                elif self._is_numbered and not self._resume:
                    self.path = choose_folder(self._config, None, resume=False)
                else:
                    self._own()
        (self.path / CHECKPOINTS).mkdir(exist_ok=True)
        for name, text in self._files().items():
            write_text(self.path / name, text)
        return self.path, self.last

    def _own(self) -> None:
        """Lock a folder that is there, tidy it, and find where to go on.

        Raises:
            ValueError: see the class.
        """
        try:
            self._lock = FileLock(self.path / LOCK)
        except HeldError as error:
            raise ValueError(
                f"two trainings cannot share a folder: {error} Wait for it, or name another "
                "folder with --output."
            ) from None
        try:
            choose_folder(self._config, str(self.path), self._resume)  # once more, under the lock
            for folder in (self.path, self.path / PICTURES):
                remove_partials(folder)
            remove_partials(self.path / CHECKPOINTS, shared=False)
            self.last = checkpoints.last_complete(self.path / CHECKPOINTS)
            self._refuse_other_settings()
        except BaseException:
            self.__exit__()
            raise

    def _refuse_other_settings(self) -> None:
        if self.last is None:
            return
        where = str(self.last / checkpoints.SETTINGS)
        settings = with_whole_batch(checkpoints.load_settings(self.last), self.last)
        saved = config_from_dict(settings, where)
        different = first_difference(absolute_paths(saved).to_dict(), self._config.to_dict())
        if different is not None:
            raise ValueError(
                f"the run in {self.path} was started with another {different}; "
                "resume with the same settings, or start a new run in another folder."
            )

    def _files(self) -> dict[str, str]:
        return {CONFIG: json.dumps(self._config.to_dict(), indent=2) + "\n"}


def _create(folder: Path, files: dict[str, str]) -> FileLock:
    """Make a run folder in one step, locked.

    Raises:
        FileExistsError: there is one of that name by now.
        OSError: it cannot be made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(
            f"the run folder {folder} cannot be made: {folder.parent} is no folder."
        ) from None
    if folder.parent == RUNS:
        remove_partials(RUNS)
    partial = partial_path(folder) if _MOVES_OPEN_FILES else folder
    if partial != folder:  # of a predecessor with the same number, as in a container
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    lock = None
    try:
        lock = FileLock(partial / LOCK)
        for name, text in files.items():
            (partial / name).write_text(text, encoding="utf-8")
            sync(partial / name)
        sync(partial)
        if partial != folder:
            _rename(partial, folder)
    except BaseException:
        if lock is not None:
            lock.release()
        shutil.rmtree(partial, ignore_errors=True)
        raise
    lock.move(folder / LOCK)
    with contextlib.suppress(OSError):
        sync(folder.parent)
    return lock


def _rename(partial: Path, folder: Path) -> None:
    try:
        os.rename(partial, folder)
    except OSError:
        if folder.is_symlink() and not folder.exists():
            raise FileNotFoundError(
                f"the run folder {folder} is a link that leads nowhere; name another."
            ) from None
        if folder.exists():
            raise FileExistsError(str(folder)) from None
        raise
