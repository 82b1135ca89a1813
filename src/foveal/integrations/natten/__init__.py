"""natten's functions and modules, computed by foveal, under their names and signatures.

natten itself need not be installed. Besides what it computes on a GPU, this trains on a CPU, and
has what natten lacks or dropped: padding masks, relative positions (`rpb`), dropout, kernels of
one token on an axis, values of another head_dim, and the two halves `na2d_qk` and `na2d_av`.

Differs from natten in: a scale of 0 is a scale; `na2d` refuses tensors of another rank; switches
and arguments that choose one of its kernels are accepted and change nothing.
"""

from __future__ import annotations

from typing import Any

from foveal.common.packages import need
from foveal.integrations.natten import functional
from foveal.integrations.natten.context import (
    allow_flex_compile,
    allow_flex_compile_backprop,
    are_deterministic_algorithms_enabled,
    disable_flex_compile,
    disable_flex_compile_backprop,
    get_memory_usage_preference,
    is_flex_compile_allowed,
    is_flex_compile_backprop_allowed,
    is_kv_parallelism_in_fused_na_enabled,
    is_memory_usage_default,
    is_memory_usage_strict,
    is_memory_usage_unrestricted,
    set_memory_usage_preference,
    use_deterministic_algorithms,
    use_fused_na,
    use_gemm_na,
    use_kv_parallelism_in_fused_na,
)
from foveal.integrations.natten.functional import (
    attention,
    merge_attentions,
    na1d,
    na1d_av,
    na1d_qk,
    na2d,
    na2d_av,
    na2d_qk,
    na3d,
    na3d_av,
    na3d_qk,
)
from foveal.integrations.natten.modules import (
    NeighborhoodAttention1D,
    NeighborhoodAttention2D,
    NeighborhoodAttention3D,
)

HAS_LIBNATTEN = False

__all__ = [
    "HAS_LIBNATTEN",
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "NeighborhoodAttention3D",
    "allow_flex_compile",
    "allow_flex_compile_backprop",
    "are_deterministic_algorithms_enabled",
    "attention",
    "disable_flex_compile",
    "disable_flex_compile_backprop",
    "get_memory_usage_preference",
    "is_flex_compile_allowed",
    "is_flex_compile_backprop_allowed",
    "is_kv_parallelism_in_fused_na_enabled",
    "is_memory_usage_default",
    "is_memory_usage_strict",
    "is_memory_usage_unrestricted",
    "merge_attentions",
    "na1d",
    "na1d_av",
    "na1d_qk",
    "na2d",
    "na2d_av",
    "na2d_qk",
    "na3d",
    "na3d_av",
    "na3d_qk",
    "register",
    "set_memory_usage_preference",
    "use_deterministic_algorithms",
    "use_fused_na",
    "use_gemm_na",
    "use_kv_parallelism_in_fused_na",
]


def register() -> list[str]:
    """Give the installed natten the functions that it dropped, so that what imports them runs.

    Returns:
        the names that `natten.functional` lacked; what it has is left as it is.

    Raises:
        ModuleNotFoundError: natten is not installed.
    """
    theirs = need("natten.functional", "foveal.integrations.natten.register")
    missing = [name for name in functional.__all__ if not hasattr(theirs, name)]
    for name in missing:
        setattr(theirs, name, getattr(functional, name))
    return missing


def __getattr__(name: str) -> Any:
    if name.startswith(("get_configs_for_", "get_bwd_configs_for_")):
        raise AttributeError(
            f"{name} lists tile shapes of natten's own kernels; foveal chooses for itself."
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}.")
