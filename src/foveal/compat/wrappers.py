"""Where training scripts keep the weights of a model, and what they put before their names.

torch.compile, DistributedDataParallel, FSDP, Lightning, averages of weights and wrappers for
generation each nest a state dict or prefix its names, in any order around each other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor

NESTS = (
    "state_dict",
    "model_state_dict",
    "weights",
    "model",
    "model_state",
    "module",
    "net",
    "params",
    "ema_model",
    "ema",
    "model_ema",
    "state_dict_ema",
    "ema_state_dict",
    "params_ema",
)
"""Keys under which scripts keep the weights: those that were trained before their averages."""

NO_WEIGHTS = ("optim", "sched", "scaler", "rng", "hparams", "hyper_parameters", "callbacks")
"""What else a checkpoint holds, by the beginnings or ends of the keys."""

INSIDE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
"""Put before the name of any part of a model by torch.compile, FSDP and checkpointing."""

COUNTERS = ("n_averaged", "initted", "step", "decay", "num_updates")
"""What averages of weights count beside them (AveragedModel, ema-pytorch)."""

PARTS = {"layers", "blocks", "stages", "transformer", "encoder", "decoder"}
"""Names that models give to parts of themselves."""

WRAPPERS = ("ema_model", "module", "model", "net", "generator", "model_ema", "ema", "online_model")
"""Parts of a training module that are the model, the first that is there; others are left out."""


def find_weights(content: Mapping[Any, Any]) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a checkpoint, and the key at the top under which they stand, if any."""
    own, nested = _tensors(content), {}
    for key, value in content.items():
        if isinstance(value, Mapping) and not _is_no_weights(str(key)):
            nested[str(key)] = find_weights(value)[0]
    if own and len(own) >= max(map(len, nested.values()), default=0):
        return own, None
    known = [key for key in NESTS if nested.get(key)]
    others = sorted(nested, key=lambda key: -len(nested[key]))
    for key in (*known, *others):
        if nested[key]:
            return nested[key], key
    return own, None


def _tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {
        name: value
        for name, value in content.items()
        if isinstance(value, Tensor) and isinstance(name, str)
    }


def _is_no_weights(key: str) -> bool:
    return any(key.startswith(word) or key.endswith(word) for word in NO_WEIGHTS)


def unwrap(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names that the model itself gives them."""
    weights = {_without_inside(name): value for name, value in weights.items()}
    while True:
        named = {name: value for name, value in weights.items() if name not in COUNTERS}
        first = _wrapper(named)
        if first is None:
            return weights
        own = f"{first}."
        weights = {
            name.removeprefix(own): value for name, value in named.items() if name.startswith(own)
        }


def _without_inside(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in INSIDE)


def _wrapper(names: Mapping[str, Tensor]) -> str | None:
    """The first part of names that is a wrapper's: common to all, or known to hold the model."""
    firsts = Counter(name.partition(".")[0] for name in names if "." in name)
    if len(firsts) == 1 and sum(firsts.values()) == len(names) and not firsts.keys() & PARTS:
        return next(iter(firsts))
    found = [word for word in WRAPPERS if firsts[word]]
    if not found:
        return None
    rest = sum(count for word, count in firsts.items() if word not in WRAPPERS)
    # beside the model a training module holds a few tensors at most: of its loss, its metrics
    return found[0] if 2 * rest < firsts[found[0]] else None
