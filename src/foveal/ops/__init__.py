"""How attention is computed: attend(), its implementations, and merging by log-sum-exp."""

from foveal.common.lazy import import_beside
from foveal.ops.attend import attend
from foveal.ops.bias import PyramidBias, TableBias, WindowBias
from foveal.ops.explain import Explanation, explain
from foveal.ops.merge import merge
from foveal.ops.pyramid import pyramid_attend
from foveal.ops.selected import attend_selected, explain_selected
from foveal.ops.table import Alibi, alibi
from foveal.ops.varlen import attend_varlen

__all__ = [
    "attend",
    "attend_selected",
    "attend_varlen",
    "explain",
    "explain_selected",
    "Explanation",
    "merge",
    "WindowBias",
    "TableBias",
    "PyramidBias",
    "Alibi",
    "alibi",
    "pyramid_attend",
]

import_beside("torch.utils.flop_counter", "foveal.ops.flops")
