"""foveal's image models under timm's names: `timm.create_model("foveal_halonet_h1")`.

    import timm
    import foveal.integrations.timm

    timm.list_models("foveal_*")
    net = timm.create_model("foveal_sepvit_tiny", num_classes=10, in_chans=1, drop_path_rate=0.1)

Images may have any size. No trained weights come with foveal: `pretrained=True` loads those of a
`pretrained_cfg_overlay=dict(file=...)`, and `checkpoint_path` works as ever. Tested with 1.0.31.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from foveal.common.packages import need
from foveal.data.augment import MEAN, SPREAD
from foveal.models.registry import create_model, find_model, list_models
from foveal.models.staged import StagedConfig, StagedModel
from foveal.patterns.sizes import pair

need("timm", "foveal.integrations.timm")

from timm.models import (  # noqa: E402
    build_model_with_cfg,
    generate_default_cfgs,
    is_model,
    register_model,
)

PREFIX = "foveal_"

SIDES = {"halonet_h3": 320, "halonet_h4": 384, "halonet_h5": 448, "halonet_h6": 512}
SIDES |= {"halonet_h7": 600, "halonet_cifar": 32}
"""Of the images that a model was made for, where its configuration does not say."""

PAPERS = {"halonet": "arXiv:2103.12731", "sepvit": "arXiv:2203.15380"}

default_cfgs: dict[str, Any] = {}
"""Name in timm -> what its tools ask of a model; timm reads it here when one is registered."""


def register() -> list[str]:
    """Make every named image model of foveal known to timm; on import this is done once.

    Returns:
        Their names in timm: "foveal_" and those of `foveal.list_models()`.
    """
    names = [name for name in list_models() if issubclass(find_model(name)[0], StagedModel)]
    for name in names:
        if not is_model(PREFIX + name):
            default_cfgs.update(generate_default_cfgs({PREFIX + name: _describe(name)}))
            register_model(_entry(name))
    return [PREFIX + name for name in names]


def _settings(name: str) -> StagedConfig:
    cls, options = find_model(name)
    settings: StagedConfig = cls.config_class(**options)
    return settings


def _describe(name: str) -> dict[str, Any]:
    """What timm calls the pretrained_cfg."""
    c, cls = _settings(name), find_model(name)[0]
    size = pair(SIDES.get(name, c.image_size), "image_size")
    reduction = c.stem_reduction * math.prod(c.strides)
    return {
        "input_size": (c.in_chans, *size),
        "pool_size": tuple(-(-side // reduction) for side in size),
        "num_classes": c.num_classes,
        "mean": (MEAN,) * c.in_chans,  # as foveal trains them
        "std": (SPREAD,) * c.in_chans,
        "interpolation": "bicubic",
        "crop_pct": 1.0 if size[0] < 64 else 0.95,
        "first_conv": c.first_conv,
        "classifier": "head",
        "paper_ids": PAPERS.get(cls.family),
    }


def _entry(name: str) -> Any:
    """The function that timm keeps under a name."""

    def entry(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        features = {
            "feature_cls": "getter",
            "flatten_sequential": True,  # for those that ask for another class
            "out_indices": tuple(range(len(_settings(name).strides))),
        }
        return build_model_with_cfg(
            lambda **options: _build(name, pretrained, **options),
            PREFIX + name,
            pretrained,
            feature_cfg=features,
            **kwargs,
        )

    entry.__name__ = entry.__qualname__ = PREFIX + name
    entry.__doc__ = f"foveal.create_model({name!r}) with the keywords of timm."
    entry.__module__ = __name__
    return entry


def _build(
    name: str,
    pretrained: bool,
    *,
    img_size: int | tuple[int, int] | None = None,
    device: Any = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> StagedModel:
    """A model from timm's keywords.

    Args:
        pretrained: whether weights follow; their size of images is then the one of the model.
        img_size: where a model has parameters for a size, the one that they are made for.
    """
    if img_size is not None and not pretrained:
        options["image_size"] = img_size
    with torch.device(device or torch.get_default_device()):
        model: StagedModel = create_model(name, **options)
    return model.to(dtype) if dtype is not None else model


register()
