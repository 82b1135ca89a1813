"""Models on disk: a folder with config.json and model.safetensors; and where such files are."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from foveal.common.files import read_json, write_file, write_text
from foveal.common.lazy import provided
from foveal.common.meta import on_meta
from foveal.common.placing import as_device, as_dtype
from foveal.models.registry import family

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
MODEL_TYPE = "foveal"
"""What transformers knows our configurations by; see foveal.integrations.transformers."""
TIED = "tied"
"""Note in a file of weights: name of a parameter -> name of the one that it is."""

Find = Callable[[str, int], Path]
"""Where the file of a name lies, for which so many bytes are plenty."""

_OF_HUB = r"\w[\w.-]*/\w([\w.-]*\w)?"
_MOST_CONFIG = 64 << 20
_MOST_HEADER = 100 << 20
_WIDEST = 8
"""Bytes of a configuration, of what stands before weights, and of a number."""


def save_model(model: Any, folder: str | Path) -> None:
    """Write a Model's configuration and weights; a reader never sees a half-written file."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state, tied = _separate(model.state_dict())
    notes = {"format": "pt", TIED: json.dumps(tied)} if tied else {"format": "pt"}
    config = {
        "model_type": MODEL_TYPE,
        "family": model.family,
        "config": model.settings.to_json(),
    }
    text = json.dumps(config, indent=2) + "\n"
    write_file(folder / WEIGHTS, lambda path: save_file(state, path, notes))
    write_text(folder / CONFIG, text)


def load_model(
    folder: str | Path,
    device: torch.device | str | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Any:
    """The Model that `save_model` wrote, in evaluation mode.

    Args:
        folder: where it was saved; or "user/name" of a model on the Hub, if there is no such
            folder. Of that, config.json and model.safetensors are downloaded, nothing else.
        device: of its weights, the CPU unless given; "meta" for a model that is shapes alone.
        dtype: of its weights, such as "bfloat16" or torch.bfloat16: `.to(dtype)` of the model,
            made one weight at a time; that of the file unless given.
        revision: branch, tag or commit of a model on the Hub; its main branch unless given.
        token: who asks the Hub; the one that was logged in with unless given, nobody if False.
        cache_dir: where downloads are kept; where huggingface_hub keeps them unless given.
        local_files_only: take what was downloaded before, and ask nobody.
        force_download: download again.

    Raises:
        FileNotFoundError: a file is missing, or there is no such model on the Hub.
        ValueError: a file is damaged, or the weights do not fit the configuration; a device that
            is not there, or a dtype that no model computes in.
        PermissionError, ConnectionError: the Hub refuses, or cannot be reached.
    """
    place = torch.device("cpu") if device is None else as_device("device", device)
    kind = None if dtype is None else as_dtype("dtype", dtype)
    if not _is_of_hub(folder):
        if revision is not None:
            raise ValueError(_no_revisions(folder, revision))
        mend = "copy it again or save the model again"
        return _read_model(lambda name, _: Path(folder) / name, place, kind, mend)
    files = provided("hub_files")(
        folder,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        force_download=force_download,
    )
    return _read_model(files, place, kind, "force_download=True downloads it again")


def _is_of_hub(folder: str | Path) -> bool:
    """Whether it is the name of a model on the Hub, and none of a folder here."""
    named = isinstance(folder, str) and re.fullmatch(_OF_HUB, folder, re.ASCII)
    return bool(named) and not Path(folder).exists()


def _no_revisions(folder: str | Path, revision: str) -> str:
    what = "is a folder here" if Path(folder).exists() else "is no name like user/name"
    return (
        f"revision={revision!r} is for a model on the Hub, but {str(folder)!r} {what}; "
        "leave it out."
    )


def _read_model(find: Find, device: torch.device, dtype: torch.dtype | None, mend: str) -> Any:
    """A model from its two files; `mend` is what helps where one is damaged."""
    path = find(CONFIG, _MOST_CONFIG)
    name, options = _read_config(path, mend)
    try:
        cls = family(name)
        settings = cls.config_class.from_json(options)
        with on_meta():  # the weights come from the file, so none are drawn
            model = cls(settings)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # of torch, too
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path} does not describe a model: {reason}") from error
    count = sum(value.numel() for value in model.state_dict().values())
    path = find(WEIGHTS, count * _WIDEST + _MOST_HEADER)
    weights, tied = _read_weights(path, mend)
    left_out = _left_out(model, weights)
    weights |= {name: weights[first] for name, first in left_out.items()}
    tied |= left_out
    _fit(model, weights, path)
    for key, value in weights.items():
        weights[key] = _placed(value, device, dtype)
    model.load_state_dict(weights, strict=True, assign=True)
    for name, first in tied.items():
        _tie(model, name, first)
    return model.eval()


def _placed(value: Tensor, device: torch.device, dtype: torch.dtype | None) -> Tensor:
    """A copy of a tensor of a file as the model is to have it.

    Copies are aligned as fresh weights are, so that results are the same to the last bit.
    """
    kind = dtype if value.is_floating_point() else None
    return value.to(device, kind, copy=True)


def _separate(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors that share no memory, and of those that are one tensor: name -> its first name."""
    result: dict[str, Tensor] = {}
    seen: dict[tuple[Any, ...], str] = {}
    tied, memory = {}, set()
    for name, value in state.items():
        storage = value.untyped_storage().data_ptr()
        which = (storage, value.storage_offset(), value.shape, value.stride())
        if value.numel() and which in seen:
            tied[name] = seen[which]
        seen.setdefault(which, name)
        whole = value.contiguous()
        result[name] = whole.clone() if storage in memory and whole is value else whole
        memory.add(storage)
    return result, tied


def _left_out(model: nn.Module, weights: dict[str, Tensor]) -> dict[str, str]:
    """What transformers does not write twice: name of a parameter -> another name of the same
    one, which the file has."""
    names: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(name)
    found: dict[str, str] = {}
    for several in names.values():
        there = [name for name in several if name in weights]
        if there:
            found |= {name: there[0] for name in several if name not in weights}
    return found


def _tie(model: nn.Module, name: str, first: str) -> None:
    """Make a parameter the one that it was when it was saved."""
    home, _, own = name.rpartition(".")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if name in parameters and first in parameters:
        setattr(model.get_submodule(home), own, parameters[first])


def _read_config(path: Path, mend: str) -> tuple[str, dict[str, Any]]:
    _require(path)
    try:
        content = read_json(path)
        if not isinstance(content, dict):
            raise TypeError(f"it holds no object, but {content!s:.40}")
        name, options = content["family"], content["config"]
        if not isinstance(name, str) or not isinstance(options, dict):
            raise TypeError("family must be a string and config an object")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged or not a foveal configuration ({error}); {mend}."
        ) from error
    return name, options


def _read_weights(path: Path, mend: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, and which of them are one."""
    _require(path)
    try:
        with safe_open(path, "pt") as file:
            note = (file.metadata() or {}).get(TIED, "{}")
        weights = load_file(path)
        return weights, _read_note(note, weights)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); {mend}.") from error


def _read_note(note: str, weights: dict[str, Tensor]) -> dict[str, str]:
    """Which weights are one, as the file says; only equal ones can be."""
    try:
        tied = json.loads(note)
    except RecursionError:
        tied = None
    if not isinstance(tied, dict) or not all(isinstance(one, str) for one in tied.values()):
        raise ValueError(f"its note of tied weights is no table of names: {note:.40}")
    for name, first in tied.items():
        if not _are_equal(weights.get(name), weights.get(first)):
            raise ValueError(f"its note ties {name:.60} to {first:.60}, which is not the same")
    return tied


def _are_equal(one: Tensor | None, other: Tensor | None) -> bool:
    """Whether both are there and hold the same numbers; NaN is NaN."""
    if one is None or other is None or (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _require(path: Path) -> None:
    if not path.is_file():
        if path.with_name(f"{path.name}.index.json").is_file():  # of transformers
            raise FileNotFoundError(
                f"the weights in {path.parent} are in several files, as foveal does not write "
                "them; open it with foveal.integrations.transformers, and save it whole with "
                "max_shard_size."
            )
        if any(path.parent.glob("shard-*.safetensors")):
            raise FileNotFoundError(
                f"{path.parent} is a checkpoint in parts, of a training whose processes share the "
                "weights; open the folder model of the run, which is written at its end."
            )
        raise FileNotFoundError(
            f"{path} does not exist; expected a folder written by save_pretrained, or user/name "
            "of a model on the Hub."
        )


def _fit(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Raise ValueError unless names, shapes and kinds of the weights are those of the model."""
    wanted = {name: (tuple(one.shape), _kind(one)) for name, one in model.state_dict().items()}
    found = {name: (tuple(one.shape), _kind(one)) for name, one in weights.items()}
    faults = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    faults += [f"{name} is not part of the model" for name in found.keys() - wanted.keys()]
    for name in wanted.keys() & found.keys():
        (shape, kind), (right_shape, right_kind) = found[name], wanted[name]
        if shape != right_shape:
            faults.append(f"{name} has shape {shape}, expected {right_shape}")
        elif kind != right_kind:
            faults.append(f"{name} has {kind} numbers, expected {right_kind} ones")
    if faults:
        shown = "; ".join(sorted(faults)[:3]) + ("; ..." if len(faults) > 3 else "")
        raise ValueError(
            f"{path} does not fit {CONFIG} beside it: {shown} ({len(faults)} in all)."
        )


def _kind(value: Tensor) -> str:
    """What numbers a tensor holds; those of one kind stand for each other in any width."""
    if value.is_floating_point():
        return "floating-point"
    if value.is_complex():
        return "complex"
    return "boolean" if value.dtype == torch.bool else "whole"
