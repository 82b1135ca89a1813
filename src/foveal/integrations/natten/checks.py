"""What natten's functions are handed, checked in its own words."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from foveal.common.words import suggest

MOST_AXES = 3
SIZES = ("length", "height, width", "frames, height, width")
BACKENDS = ("cutlass", "hopper", "blackwell", "flex")
SCHEDULES = ("non", "coop", "pp")
TUNING = (
    "backend",
    "q_tile_size",
    "kv_tile_size",
    "backward_q_tile_size",
    "backward_kv_tile_size",
    "backward_kv_splits",
    "backward_use_pt_reduction",
    "run_persistent_kernel",
    "kernel_schedule",
    "torch_compile",
)
"""Arguments of `attention` that choose a kernel and change no result."""


def check_rank(name: str, x: Any, rank: int, layout: str) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor ({layout}), got {type(x).__name__}.")
    if x.ndim != rank:
        raise ValueError(f"{name} must be ({layout}), got {tuple(x.shape)}.")


def check_tokens(query: Any, key: Any, value: Any) -> int:
    """The number of axes that tokens lie on."""
    axes = query.ndim - 3 if isinstance(query, Tensor) else 1
    if not 1 <= axes <= MOST_AXES:
        raise ValueError(
            "query must be (batch, *size, heads, head_dim) with a size of one to three axes, got "
            f"{tuple(query.shape)}."
        )
    layout = f"batch, {SIZES[axes - 1]}, heads, head_dim"
    for name, x in (("query", query), ("key", key), ("value", value)):
        check_rank(name, x, axes + 3, layout)
    tokens = query.shape[: axes + 1]
    if key.shape[: axes + 1] != tokens or value.shape[: axes + 1] != tokens:
        raise ValueError(
            f"query, key and value must have the same tokens, ({layout}), got "
            f"{tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}; other keys are "
            "additional_keys."
        )
    return axes


def check_tuning(backend: Any, kernel_schedule: Any, options: dict[str, Any] | None) -> None:
    """Refuse words that natten does not know either; those that it knows change no result."""
    if backend is not None:
        known = [f"{name}-{kind}" for name in BACKENDS for kind in ("fna", "fmha")]
        if backend not in known:
            hint = suggest(backend, known)
            raise ValueError(f"backend must be None or one of natten's, got {backend=!r}; {hint}")
    if isinstance(kernel_schedule, str) and kernel_schedule not in SCHEDULES:
        raise ValueError(
            f"kernel_schedule must be None or one of {SCHEDULES}, got {kernel_schedule=!r}."
        )
    for name in options or ():
        if name not in TUNING:
            raise ValueError(
                f"attention_kwargs may choose a kernel, got {name!r}; {suggest(name, TUNING)}"
            )
    if options:
        check_tuning(options.get("backend"), options.get("kernel_schedule"), None)


def flat_mask(key_mask: Any, tokens: tuple[int, ...]) -> Tensor:
    """(batch, *size) -> (batch, tokens)."""
    if not isinstance(key_mask, Tensor):
        raise TypeError(f"key_mask must be a tensor, got {type(key_mask).__name__}.")
    if tuple(key_mask.shape) != tokens:
        raise ValueError(
            f"key_mask must be (batch, *size) = {tokens}, True for a real token, got "
            f"{tuple(key_mask.shape)}."
        )
    return key_mask.flatten(1)


def check_rpb(rpb: Any, kernel_size: tuple[int, ...], heads: int) -> None:
    """Raise if relative positions are not (heads, 2 * kernel - 1, ...)."""
    if not isinstance(rpb, Tensor):
        raise TypeError(f"rpb must be a tensor (heads, 2 k - 1, ...), got {type(rpb).__name__}.")
    wanted = (heads, *(2 * kernel - 1 for kernel in kernel_size))
    if tuple(rpb.shape) != wanted:
        raise ValueError(
            f"rpb must be (heads, 2 * kernel_size - 1 on each axis) = {wanted}, got "
            f"{tuple(rpb.shape)}."
        )
