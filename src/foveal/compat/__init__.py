"""What exists only to be like another package: drop-in classes, names of parameters, faults.

`foveal.compat.<package>` has the public names of a package, with its positions, keywords, defaults
and parameter names, computed by foveal. Nothing below imports this room: a class or a table that
a model needs is provided (`common.lazy`), and loads when it is asked for.
"""

import importlib
from typing import Any

from foveal.common.lazy import provided

__all__ = ["load_upstream", "save_upstream", "list_upstreams", "register_upstream"]

_PACKAGES = (
    "dalle_pytorch",
    "h_transformer_1d",
    "halonet_pytorch",
    "hourglass_transformer_pytorch",
    "vit_pytorch",
)


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:  # by its own name, as an import would: each loads when it is named
        return importlib.import_module(f"foveal.compat.{name}")
    return provided(name, "foveal.compat", __all__)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})
