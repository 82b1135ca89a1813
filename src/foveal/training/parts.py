"""Checkpoints in parts: each process writes what it holds, and any number of others reads it.

In place of the files of one process (see foveal.training.checkpoints) the folder has safetensors
files `shard-00001-...`, one a process, by torch.distributed.checkpoint: weights under their own
names, what optimizers keep of them under `optimizer/NAME/STATE`; and `state.json` with everything
that is no tensor. Nothing in it is pickled.
"""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)

from foveal.common.files import begin_folder, finish_folder
from foveal.training.folders import (
    PARTS,
    CheckpointError,
    failure,
    fingerprint,
    folder_of,
    prune,
    read_table,
    write_manifest,
)
from foveal.training.moments import Moments
from foveal.training.processes import from_first

if TYPE_CHECKING:
    from accelerate import Accelerator

OPTIMIZER = "optimizer/"

Entries = dict[str, tuple[int, str]]


# -- writing --------------------------------------------------------------------------------------


def save_parts(
    accelerator: Accelerator,
    root: Path,
    step: int,
    tensors: dict[str, Tensor],
    texts: Mapping[str, str],
    *,
    keep: int,
    check: Callable[[], None],
) -> Path:
    """Write a checkpoint in one step, of what all processes hold, and delete all but the last.

    Args:
        root: the folder of checkpoints, which all processes see.
        tensors: DTensors, each process its part; and tensors that are the same on all.
        texts: further files, name -> content.
        keep, check: see `foveal.training.weights.Weights.save`.

    Raises:
        OSError: it could not be written; those that were there are as they were.
        StoppedElsewhereError: likewise, on all processes but the first.
    """
    folder = folder_of(root, step)

    def begin() -> Path:
        check()
        with _told(root, step, check):
            root.mkdir(exist_ok=True)
            return begin_folder(folder)

    partial = from_first(accelerator, begin)
    written = _write_parts(partial, tensors, accelerator.process_index)
    everybodys = _gathered(written)

    def finish() -> Path:
        try:
            with _told(root, step, check):
                _close(partial, everybodys, texts)
                finish_folder(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        prune(root, step, keep)
        return folder

    return from_first(accelerator, finish)


def state_text(state: Mapping[str, Any]) -> str:
    """The text of state.json.

    Raises:
        ValueError: something in it is neither a number nor a text nor made of these.
    """
    try:
        return json.dumps(state, indent=2)
    except (TypeError, ValueError) as error:
        raise ValueError(
            "the position of a stream must be numbers, texts and lists and tables of them to be "
            f"saved by several processes that share the weights: {error}."
        ) from error


@contextlib.contextmanager
def _told(root: Path, step: int, check: Callable[[], None]) -> Iterator[None]:
    """Say of an OSError which checkpoint could not be written."""
    try:
        yield
    except OSError as error:
        check()  # which may know better what went wrong
        raise OSError(failure(root, step, error)) from error


def _write_parts(partial: Path, tensors: dict[str, Tensor], rank: int) -> Entries | OSError:
    """This process's files: name -> size and SHA-256; or why they could not be written."""
    writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
    # what all have alike is the first's: buffers of others may differ
    planner = DefaultSavePlanner(dedup_save_to_lowest_rank=True)
    try:
        dcp.save(tensors, storage_writer=writer, planner=planner)
        own = sorted(partial.glob(f"shard-{rank + 1:05d}-*"))
        return {file.name: fingerprint(file) for file in own}
    except OSError as error:
        return OSError(error.errno, error.strerror)
    except CheckpointException as error:
        return _first_fault(error)


def _first_fault(error: CheckpointException) -> OSError:
    """Why the first of the processes that failed did."""
    rank, (fault, _) = min(error.failures.items())
    reason = str(fault).strip().splitlines()[0] if str(fault).strip() else repr(fault)
    if isinstance(fault, OSError) and fault.strerror:
        return OSError(fault.errno, f"{fault.strerror} (process {rank})")
    return OSError(errno.EIO, f"{reason} (process {rank})")


def _gathered(written: Entries | OSError) -> list[Entries | tuple[int, str]]:
    from accelerate.utils import gather_object

    own = (written.errno, written.strerror) if isinstance(written, OSError) else written
    found: list[Entries | tuple[int, str]] = gather_object([own])
    return found


def _close(
    partial: Path, everybodys: list[Entries | tuple[int, str]], texts: Mapping[str, str]
) -> None:
    """Put what one process writes for all beside the parts, and the manifest."""
    entries: Entries = {}
    for one in everybodys:
        if isinstance(one, tuple):
            raise OSError(*one)
        entries |= one
    for name, text in texts.items():
        (partial / name).write_text(text, encoding="utf-8")
        entries[name] = fingerprint(partial / name)
    write_manifest(partial, entries)


# -- reading --------------------------------------------------------------------------------------


def load_parts_state(folder: Path) -> dict[str, Any]:
    """What a checkpoint in parts holds besides tensors.

    Raises:
        CheckpointError: it is damaged.
    """
    return read_table(folder / PARTS, "state of a checkpoint is", "state of a training")


def read_weights(model: nn.Module, folder: Path) -> None:
    """Fill a model, or the part of it that this process holds, with a checkpoint's weights.

    Args:
        folder: in parts, or as one process writes it.

    Raises:
        CheckpointError: they do not fit.
    """
    found = {k: v for k, v in _contents(folder).items() if not k.startswith(OPTIMIZER)}
    wanted = weights_of(model)
    faults, into = [], {}
    for names, tensor in wanted:
        name = next((one for one in names if one in found), None)
        if name is None:
            faults.append(f"{names[0]} is missing")
        elif found[name] != tensor.shape:
            faults.append(f"{name} has shape {tuple(found[name])}, expected {tuple(tensor.shape)}")
        else:
            into[name] = tensor.detach()
    known = {name for names, _ in wanted for name in names}
    faults += [f"{name} is not part of the model" for name in found.keys() - known]
    if faults:
        shown = "; ".join(sorted(faults)[:3]) + ("; ..." if len(faults) > 3 else "")
        raise CheckpointError(f"the weights of {folder} do not fit the model: {shown}.")
    _read(into, folder)


def weights_of(model: nn.Module) -> list[tuple[list[str], Tensor]]:
    """Parameters and saved buffers, each once: all its names, and itself."""
    found: dict[int, tuple[list[str], Tensor]] = {}
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor):
            found.setdefault(id(value), ([], value))[0].append(name)
    return list(found.values())


def read_moments_of(folder: Path, parameters: Mapping[str, Tensor]) -> Moments:
    """What optimizers kept of parameters, by name; in parts where these are.

    Raises:
        CheckpointError: they do not fit.
    """
    into: dict[str, Tensor] = {}
    moments: Moments = {}
    for key, shape in _contents(folder).items():
        if not key.startswith(OPTIMIZER):
            continue
        name, _, kind = key.removeprefix(OPTIMIZER).rpartition("/")
        if name not in parameters:
            raise CheckpointError(f"{folder} has trained {name}, which the model has not.")
        like = parameters[name].detach()
        into[key] = torch.zeros_like(like) if shape == like.shape else torch.zeros(shape)
        moments.setdefault(name, {})[kind] = into[key]
    _read(into, folder)
    return moments


def _contents(folder: Path) -> dict[str, torch.Size]:
    """The shapes of all tensors of a checkpoint."""
    try:
        found = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"the weights of {folder} are damaged: {error}.") from error
    return {name: one.size for name, one in found.items()}  # type: ignore[union-attr]


def _read(into: dict[str, Tensor], folder: Path) -> None:
    """Fill tensors with those of a checkpoint; each process reads what it needs by itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*single process.*")
        try:
            reader = HuggingFaceStorageReader(str(folder))
            dcp.load(dict(into), storage_reader=reader, no_dist=True)
        except CheckpointException as error:
            fault = " ".join(str(_first_fault(error).strerror).split())
            raise CheckpointError(f"the weights of {folder} cannot be read: {fault}.") from error
