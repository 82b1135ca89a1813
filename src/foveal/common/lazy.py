"""Imports that wait: for another module, or until something is asked for."""

from __future__ import annotations

import gc
import importlib
import importlib.util
import sys
from collections.abc import Container
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def named(path: str) -> Any:
    """What 'package.module:Name' stands for, where somebody names it instead of importing it."""
    home, _, name = path.rpartition(":")
    return getattr(importlib.import_module(home), name)


def import_beside(trigger: str, follower: str) -> None:
    """Import `follower` now if `trigger` is loaded, else as soon as anybody has loaded it.

    Unless it is a module of the follower's own package that loads the trigger: that one says
    itself what it needs, and is not ready to be imported by others.
    """
    if trigger in sys.modules:
        _import(follower)
    else:
        sys.meta_path.insert(0, _Beside(trigger, follower))


def _import(name: str) -> None:
    """Import a module, and look for garbage later: among all that torch holds that would take
    longer than the import, and there is none."""
    collects = gc.isenabled()
    gc.disable()
    try:
        importlib.import_module(name)
    finally:
        if collects:
            gc.enable()


class _Beside:
    """A finder that finds nothing itself, and follows one module that others find."""

    def __init__(self, trigger: str, follower: str) -> None:
        self.trigger, self.follower = trigger, follower

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The module as the other finders see it, its loader made to end with our import."""
        if name != self.trigger:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            if not _is_loading(self.follower.partition(".")[0]):
                _import(self.follower)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _is_loading(package: str) -> bool:
    """Whether a package, or a module in it, is in the middle of its import."""
    loaded = [m for name, m in list(sys.modules.items()) if name.partition(".")[0] == package]
    specs = [getattr(module, "__spec__", None) for module in loaded]
    return any(getattr(spec, "_initializing", False) for spec in specs)


# -- from the rooms above -----------------------------------------------------------------------

_homes: dict[str, str] = {}


def provide(homes: dict[str, str]) -> None:
    """Say where a room above keeps what rooms below may be asked for: name -> "module:attribute".

    So that a module need not import those that build on it: they load when a name is asked for.
    """
    _homes.update(homes)


def is_provided(name: str) -> bool:
    """Whether anything above has this name."""
    return name in _homes


def provided(name: str, room: str = "foveal", names: Container[str] = _homes) -> Any:
    """What a room above provides under a name, which must be among `names`.

    Raises:
        AttributeError: nothing, in words for whoever asked `room` for it.
    """
    if name not in names or name not in _homes:
        raise AttributeError(f"module {room!r} has no attribute {name!r}")
    module, _, attribute = _homes[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
