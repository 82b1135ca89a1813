"""What exists only to be like another package: drop-in classes, names of parameters, faults.

`foveal.compat.<package>` has the public names of a package, with its positions, keywords, defaults
and parameter names, computed by foveal. Nothing below imports this room: a class or a table that
a model needs is provided (`common.lazy`), and loads when it is asked for.
"""

from typing import Any

from foveal.common.lazy import provided

__all__ = ["load_upstream", "save_upstream", "list_upstreams", "register_upstream"]


def __getattr__(name: str) -> Any:
    return provided(name, "foveal.compat", __all__)
