"""One sequence over many ranks, by exchanging only what the pattern reads.

Loaded when it is named: `import foveal.parallel`.
"""

from foveal.parallel.attend import attend
from foveal.parallel.explain import Volume, explain
from foveal.parallel.fetch import fetch
from foveal.parallel.image import alignment, shard_rows
from foveal.parallel.loss import cross_entropy, next_tokens
from foveal.parallel.model import shard_sequence
from foveal.parallel.prefill import prefill
from foveal.parallel.ranks import Simulated, simulate
from foveal.parallel.shares import take

__all__ = [
    "attend",
    "fetch",
    "shard_sequence",
    "cross_entropy",
    "next_tokens",
    "shard_rows",
    "alignment",
    "prefill",
    "take",
    "explain",
    "Volume",
    "simulate",
    "Simulated",
]
