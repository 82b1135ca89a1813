"""HaloNets as timm sizes them: residual networks whose last convolutions are attention.

The published weights are timm's, 79 to 82 % of ImageNet (`foveal.load_upstream`). Here they have
the corrected mathematics; see docs/upstream.md for what differs.
"""

from __future__ import annotations

from typing import Any

_CONV, _HALO = ("conv",), ("halo",)

RESNET: dict[str, Any] = {
    "dims": (64, 128, 256, 512),
    "heads": (8, 8, 8, 8),
    "bottleneck_ratio": 4.0,
    "stem_dims": (24, 32, 64),
    "stem_kernel": 3,
    "rel_pos": "sum",
    "scale_rel_pos": False,
    "block_size": 8,
    "halo_size": 3,
}
_26: dict[str, Any] = {
    **RESNET,
    "depths": (2, 2, 2, 2),
    "mixers": (_CONV, _CONV, ("conv", "halo"), _HALO),
}
_50: dict[str, Any] = {**RESNET, "depths": (3, 4, 6, 3)}
_STRIDED: dict[str, Any] = {"stem_stride": 4, "stem_pool": False}

HYBRIDS: dict[str, dict[str, Any]] = {
    "halonet26t": {**_26, "halo_size": 2, "act": "relu"},
    "halonet50ts": {
        **_50,
        "heads": (8, 4, 8, 8),
        "mixers": (_CONV, ("conv", "conv", "conv", "halo"), ("conv", "halo"), ("conv", "halo")),
    },
    "sehalonet33ts": {
        **RESNET,
        **_STRIDED,
        "depths": (2, 3, 3, 2),
        "mixers": (_CONV, ("conv", "conv", "halo"), ("conv", "conv", "halo"), _HALO),
        "bottleneck_ratio": (4.0, 4.0, 4.0, 3.0),
        "channel_attention": "se",
        "final_dim": 1280,
    },
    "halo2botnet50ts": {
        **_50,
        **_STRIDED,
        "heads": (8, 8, 8, 4),
        "mixers": (_CONV, ("conv", "halo"), ("conv", "halo"), ("conv", "map")),
    },
    "eca_halonext26ts": {
        **_26,
        "halo_size": 2,
        "dim_head": 16,
        "channel_attention": "eca",
        "group_width": 16,
    },
    "haloregnetz_b": {
        "depths": (2, 6, 12, 2),
        "dims": (48, 96, 192, 288),
        "heads": (8, 8, 8, 8),
        "strides": (2, 2, 2, 2),
        "mixers": (_CONV, _CONV, ("conv", "conv", "conv", "halo"), _HALO),
        "bottleneck_ratio": 1.0,
        "inverted": 3.0,
        "stem_dim": 32,
        "stem_kernel": 3,
        "stem_pool": False,
        "final_dim": 1536,
        "channel_attention": "se",
        "se_ratio": 0.25,
        "group_width": 16,
        "qk_ratio": 0.33,
        "rel_pos": "sum",
        "scale_rel_pos": False,
        "block_size": 7,
        "halo_size": 2,
        "image_size": 224,
    },
}
