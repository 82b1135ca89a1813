"""The public packages beside which foveal is measured and tested (peers.txt names versions)."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from types import ModuleType

WHOLE = ("halonet_pytorch", "h_transformer_1d", "hourglass_transformer_pytorch")
"""Packages whose ``__init__`` asks for nothing more, so that they can be imported as they are."""

STUBS = {"dalle_pytorch": {"dalle_pytorch.vae": ("OpenAIDiscreteVAE", "VQGanVAE")}}
"""Modules that a package imports for classes which we never use, and their own needs are many."""


def peer(name: str) -> ModuleType:
    """A module of a peer, without running the ``__init__`` of its package.

    Some packages import, in their ``__init__``, libraries that the module itself does not need
    (torchvision for ``vit_pytorch.sep_vit``).

    Raises:
        ModuleNotFoundError: the package is not installed.
    """
    package, _, module = name.partition(".")
    if package not in sys.modules:
        spec = importlib.util.find_spec(package)
        if spec is None or not module or package in WHOLE:
            return importlib.import_module(name)
        shell = ModuleType(package)
        shell.__path__ = list(spec.submodule_search_locations or [])
        shell.__spec__ = spec
        sys.modules[package] = shell
        for stub, classes in STUBS.get(package, {}).items():
            sys.modules[stub] = ModuleType(stub)
            for cls in classes:
                setattr(sys.modules[stub], cls, type(cls, (), {}))
    return importlib.import_module(name)
