"""Models on disk: a folder with config.json and model.safetensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from foveal.common.files import read_json, write_file, write_text
from foveal.common.meta import on_meta
from foveal.models.registry import family

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TIED = "tied"
"""Note in a file of weights: name of a parameter -> name of the one that it is."""


def save_model(model: Any, folder: str | Path) -> None:
    """Write a Model's configuration and weights; a reader never sees a half-written file."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state, tied = _separate(model.state_dict())
    notes = {"format": "pt", TIED: json.dumps(tied)} if tied else {"format": "pt"}
    config = {"family": model.family, "config": model.settings.to_json()}
    text = json.dumps(config, indent=2) + "\n"
    write_file(folder / WEIGHTS, lambda path: save_file(state, path, notes))
    write_text(folder / CONFIG, text)


def load_model(folder: str | Path, device: torch.device | str | None = None) -> Any:
    """The Model that `save_model` wrote, in evaluation mode and in the dtype of the file.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or the weights do not fit the configuration.
    """
    folder = Path(folder)
    name, options = _read_config(folder / CONFIG)
    weights, tied = _read_weights(folder / WEIGHTS, device)
    try:
        cls = family(name)
        settings = cls.config_class.from_json(options)
        with on_meta():  # the weights come from the file, so none are drawn
            model = cls(settings)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # of torch, too
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{folder / CONFIG} does not describe a model: {reason}") from error
    _fit(model, weights, folder / WEIGHTS)
    # copies are aligned as fresh weights are, so that results are the same to the last bit
    model.load_state_dict({k: v.clone() for k, v in weights.items()}, strict=True, assign=True)
    for name, first in tied.items():
        _tie(model, name, first)
    return model.eval()


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


def _tie(model: nn.Module, name: str, first: str) -> None:
    """Make a parameter the one that it was when it was saved."""
    home, _, own = name.rpartition(".")
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if name in parameters and first in parameters:
        setattr(model.get_submodule(home), own, parameters[first])


def _read_config(path: Path) -> tuple[str, dict[str, Any]]:
    _require(path)
    try:
        content = read_json(path)
        name, options = content["family"], content["config"]
        if not isinstance(name, str) or not isinstance(options, dict):
            raise TypeError("family must be a string and config an object")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged or not a foveal configuration ({error}); save the model again."
        ) from error
    return name, options


def _read_weights(
    path: Path, device: torch.device | str | None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, and which of them are one."""
    _require(path)
    try:
        with safe_open(path, "pt") as file:
            note = (file.metadata() or {}).get(TIED, "{}")
        weights = load_file(path, device=str(device or "cpu"))
        return weights, _read_note(note, weights)
    except (SafetensorError, ValueError) as error:
        raise ValueError(
            f"{path} is truncated or damaged ({error}); copy it again or save the model again."
        ) from error


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
        raise FileNotFoundError(
            f"{path} does not exist; expected a folder written by save_pretrained."
        )


def _fit(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    """Raise ValueError unless names and shapes of the weights are those of the model."""
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    faults = [f"{name} is missing" for name in wanted.keys() - found.keys()]
    faults += [f"{name} is not part of the model" for name in found.keys() - wanted.keys()]
    faults += [
        f"{name} has shape {found[name]}, expected {wanted[name]}"
        for name in wanted.keys() & found.keys()
        if wanted[name] != found[name]
    ]
    if faults:
        shown = "; ".join(sorted(faults)[:3]) + ("; ..." if len(faults) > 3 else "")
        raise ValueError(
            f"{path} does not fit {CONFIG} beside it: {shown} ({len(faults)} in all)."
        )
