"""DeepSpeed's sparse attention on foveal's layouts, under its names and signatures.

DeepSpeed itself need not be installed, nor Triton 1.0 or a GPU; its own SparsityConfig objects are
taken too. What its kernels refuse, works: every floating dtype, training on a CPU, gradients of
`rpe`, lengths that are no multiple of the block.
"""

from __future__ import annotations

from foveal.integrations.deepspeed.attention import SparseSelfAttention
from foveal.integrations.deepspeed.bert import BertSparseSelfAttention, SparseAttentionUtils
from foveal.integrations.deepspeed.sparsity_config import (
    BigBirdSparsityConfig,
    BSLongformerSparsityConfig,
    DenseSparsityConfig,
    FixedSparsityConfig,
    LocalSlidingWindowSparsityConfig,
    SparsityConfig,
    VariableSparsityConfig,
)

__all__ = [
    "BSLongformerSparsityConfig",
    "BertSparseSelfAttention",
    "BigBirdSparsityConfig",
    "DenseSparsityConfig",
    "FixedSparsityConfig",
    "LocalSlidingWindowSparsityConfig",
    "SparseAttentionUtils",
    "SparseSelfAttention",
    "SparsityConfig",
    "VariableSparsityConfig",
]
