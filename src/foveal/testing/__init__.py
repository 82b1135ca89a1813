"""Tools to test attention with: an oracle, reach and leak, comparison, the contract of a pattern.

They are public, for whoever adds a pattern, a layer or a model here or elsewhere:

* `dense_attention`: masked softmax attention in float64, the oracle of every implementation.
* `reach`, `assert_causal`, `assert_reaches`: which inputs move which outputs.
* `assert_close`: relative root mean square, with the tensor's name in the message.
* `assert_pattern`: every view of a pattern agrees with its definition.
"""

from foveal.testing.compare import assert_close, relative_rms
from foveal.testing.contract import assert_pattern, tiling_mask
from foveal.testing.influence import assert_causal, assert_reaches, attention_fn, reach
from foveal.testing.oracle import dense_attention

__all__ = [
    "assert_causal",
    "assert_close",
    "assert_pattern",
    "assert_reaches",
    "attention_fn",
    "dense_attention",
    "reach",
    "relative_rms",
    "tiling_mask",
]
