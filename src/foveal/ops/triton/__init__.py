"""impl="triton": kernels for halo attention on CUDA, relative positions computed in the tile."""

from foveal.ops.triton.op import triton_attend, why_not

__all__ = ["triton_attend", "why_not"]
