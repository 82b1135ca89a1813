"""Whether the kernels are right on the device at hand."""

from __future__ import annotations

import torch

from foveal.common.memo import remember
from foveal.ops.triton.op import triton_attend
from foveal.ops.trust import agrees, ask_once
from foveal.patterns import Halo


@ask_once
@remember(entries=256)
def trusted(
    block: tuple[int, ...],
    halo: tuple[int, ...],
    stride: int,
    head_dim: int,
    value_dim: int,
    dtype: torch.dtype,
    device: str,
) -> bool:
    """Whether a small problem gives the results and gradients of `tiled`, asked once a process.

    The kernels of a configuration are compiled for it, and used again for the real problem.
    """
    pattern = Halo((2 * block[0] + 1, 2 * block[1] + 1), block, halo, stride)
    dims, keys = (head_dim, value_dim), pattern.height * pattern.width
    return agrees(
        "impl='triton'", triton_attend, pattern, keys, dims, dtype, device, pattern.window
    )
