"""foveal inside transformers; imported by its name, and tested with 5.24.0."""

from foveal.common.packages import need

need("transformers", "foveal.integrations.transformers")
