"""halonet-pytorch 0.0.5, computed by foveal."""

from foveal.compat.halonet_pytorch.halonet_pytorch import (
    HaloAttention,
    RelPosEmb,
    expand_dim,
    pair,
    rel_to_abs,
    relative_logits_1d,
    to,
)

__all__ = [
    "HaloAttention",
    "RelPosEmb",
    "to",
    "pair",
    "expand_dim",
    "rel_to_abs",
    "relative_logits_1d",
]
