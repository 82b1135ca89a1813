"""Attention over blocks of keys that are chosen at run time."""

from foveal.ops.selected.attend import attend_selected
from foveal.ops.selected.explain import explain_selected

__all__ = ["attend_selected", "explain_selected"]
