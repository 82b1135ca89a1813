"""Checkpoints of other packages."""

from typing import Any

from foveal.common.lazy import provided
from foveal.interop.files import read_checkpoint

__all__ = [
    "load_upstream",
    "save_upstream",
    "list_upstreams",
    "register_upstream",
    "read_checkpoint",
]


def __getattr__(name: str) -> Any:
    return provided(name, "foveal.interop", __all__)
