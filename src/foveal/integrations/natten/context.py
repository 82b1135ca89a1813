"""natten's switches: they choose among its kernels, so here they are only remembered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from foveal.common.words import suggest

PREFERENCES = ("default", "strict", "unrestricted")

_state: dict[str, Any] = {
    "deterministic": False,
    "kv_parallelism": True,
    "memory": "default",
    "flex_compile": False,
    "flex_compile_backprop": False,
}


def use_deterministic_algorithms(mode: bool = True) -> None:
    """Accepted: what foveal computes on a CPU is deterministic without it."""
    _state["deterministic"] = bool(mode)


def are_deterministic_algorithms_enabled() -> bool:
    """What `use_deterministic_algorithms` was last told."""
    return _state["deterministic"]


def use_kv_parallelism_in_fused_na(mode: bool = True) -> None:
    """Accepted, and without effect."""
    _state["kv_parallelism"] = bool(mode)


def is_kv_parallelism_in_fused_na_enabled() -> bool:
    """What `use_kv_parallelism_in_fused_na` was last told."""
    return _state["kv_parallelism"]


def set_memory_usage_preference(pref: str = "default") -> None:
    """Accepted, and without effect: memory is bounded in any case.

    Raises:
        ValueError: natten does not know the word.
    """
    if pref not in PREFERENCES:
        raise ValueError(
            f"pref must be one of {PREFERENCES}, got {pref=}; {suggest(pref, PREFERENCES)}"
        )
    _state["memory"] = pref


def get_memory_usage_preference() -> str:
    """What `set_memory_usage_preference` was last told."""
    return _state["memory"]


def _prefers(pref: str) -> Callable[[], bool]:
    def asked() -> bool:
        return _state["memory"] == pref

    asked.__name__ = asked.__qualname__ = f"is_memory_usage_{pref}"
    asked.__doc__ = f"Whether the preference is {pref!r}."
    return asked


is_memory_usage_default, is_memory_usage_strict, is_memory_usage_unrestricted = map(
    _prefers, PREFERENCES
)


def allow_flex_compile(mode: bool = True, backprop: bool = False) -> None:
    """Accepted, and without effect: FlexAttention is not used."""
    _state["flex_compile"] = bool(mode)
    _state["flex_compile_backprop"] = bool(mode and backprop)


def allow_flex_compile_backprop(mode: bool = True) -> None:
    """Accepted, and without effect."""
    allow_flex_compile(_state["flex_compile"], mode)


def disable_flex_compile() -> None:
    """Accepted, and without effect."""
    allow_flex_compile(False)


def disable_flex_compile_backprop() -> None:
    """Accepted, and without effect."""
    allow_flex_compile_backprop(False)


def is_flex_compile_allowed() -> bool:
    """What `allow_flex_compile` was last told."""
    return _state["flex_compile"]


def is_flex_compile_backprop_allowed() -> bool:
    """What `allow_flex_compile` was last told of the backward pass."""
    return _state["flex_compile_backprop"]


# of versions until 0.17, which code written for them still calls


def use_fused_na(mode: bool = True, kv_parallel: bool = True, use_flex: bool = False) -> None:
    """Accepted, and without effect: attention is always fused."""


def use_gemm_na(mode: bool = True) -> None:
    """Accepted, and without effect."""
