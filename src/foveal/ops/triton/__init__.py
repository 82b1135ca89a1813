"""impl="triton": kernels for halo attention on CUDA, relative positions computed in the tile."""

from foveal.ops.triton.op import triton_attend, why_not
from foveal.ops.triton.trust import trusted

__all__ = ["triton_attend", "trusted", "why_not"]
