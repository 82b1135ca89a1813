"""foveal inside transformers; imported by its name, and tested with 5.24.0.

`register()`, which importing this does, makes `attn_implementation="foveal"` work for its models.
The other way round, `AutoModelForCausalLM.from_pretrained` opens the causal language models of
foveal, as `FovealForCausalLM`.
"""

from foveal.common.packages import need

need("transformers", "foveal.integrations.transformers")

from foveal.integrations.transformers.attention import register  # noqa: E402
from foveal.integrations.transformers.bytes import ByteTokenizer  # noqa: E402
from foveal.integrations.transformers.cache import FovealCache  # noqa: E402
from foveal.integrations.transformers.config import FovealConfig  # noqa: E402
from foveal.integrations.transformers.model import FovealForCausalLM  # noqa: E402

__all__ = ["register", "FovealForCausalLM", "FovealConfig", "FovealCache", "ByteTokenizer"]

register()
