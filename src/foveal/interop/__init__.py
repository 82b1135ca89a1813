"""Checkpoints of other packages."""

from foveal.interop.files import read_checkpoint
from foveal.interop.packages import list_upstreams, load_upstream, register_upstream

__all__ = ["load_upstream", "list_upstreams", "register_upstream", "read_checkpoint"]
