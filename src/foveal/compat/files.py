"""Reading checkpoint files without executing anything in them."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from foveal.compat.wrappers import find_weights, unwrap

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        weights: parameter name -> tensor, as the package named them.
        extra: what else the file held, such as hyper-parameters.
        source: where it came from, for messages.
        module: the model itself, where one was given.
    """

    weights: Weights
    extra: dict[str, Any] = field(default_factory=dict)
    source: str = "the state dict"
    module: nn.Module | None = None


def read_checkpoint(source: str | Path | Mapping[str, Any] | nn.Module) -> Checkpoint:
    """A checkpoint from a file of torch or safetensors, from a dict in memory, or of a model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, would execute code, or holds no weights.
    """
    if isinstance(source, nn.Module):
        name = f"the {type(source).__name__}"
        return Checkpoint(unwrap(source.state_dict()), source=name, module=source)
    if isinstance(source, Mapping):
        return _unpack(source, "the state dict")
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a checkpoint file.")
    if path.suffix == ".safetensors":
        return _unpack(_read_safetensors(path), str(path))
    return _unpack(_read_torch(path), str(path))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); copy it again.") from error


def _read_torch(path: Path) -> Any:
    try:
        # scripts keep their arguments beside the weights; a Namespace executes nothing
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights only" in str(error).lower() and "global" in str(error).lower():
            raise ValueError(
                f"{path} holds Python objects besides tensors, and reading them could execute "
                "code; it is refused. Save its state dict alone with the package that wrote it."
            ) from error
        raise ValueError(f"{path} is not a checkpoint, or is damaged; copy it again.") from error
    except (EOFError, RuntimeError, ValueError, KeyError, OSError) as error:
        raise ValueError(
            f"{path} is truncated or damaged ({type(error).__name__}); copy it again."
        ) from error


def _unpack(content: Any, source: str) -> Checkpoint:
    """Find the weights in what a file holds."""
    if not isinstance(content, Mapping):
        raise ValueError(f"{source} holds a {type(content).__name__}, expected a dict of tensors.")
    weights, nest = find_weights(content)
    if not weights:
        keys = ", ".join(sorted(map(str, content))[:5]) or "nothing"
        raise ValueError(
            f"{source} holds no weights; its keys are {keys}. Pass the dict of tensors itself."
        )
    extra = {name: value for name, value in content.items() if name not in (nest, *weights)}
    return Checkpoint(unwrap(weights), extra, source)
