"""foveal inside transformers; imported by its name, and tested with 5.24.0.

`register()`, which importing this does, makes `attn_implementation="foveal"` work for its models.
"""

from foveal.common.packages import need

need("transformers", "foveal.integrations.transformers")

from foveal.integrations.transformers.attention import register  # noqa: E402

__all__ = ["register"]

register()
