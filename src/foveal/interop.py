"""Checkpoints of other packages: the part of `foveal.compat` that reads and writes them."""

from typing import Any

from foveal.common.lazy import provided

_NAMES = (
    "load_upstream",
    "save_upstream",
    "list_upstreams",
    "register_upstream",
    "read_checkpoint",
)
__all__ = [*_NAMES]


def __getattr__(name: str) -> Any:
    return provided(name, "foveal.interop", _NAMES)
