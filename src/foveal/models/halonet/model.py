"""HaloNet: a residual network in which local attention replaces the 3 x 3 convolutions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from foveal.layers.patch import DropPath, PointwiseConv, drop_path_rates
from foveal.models.halonet.config import SIZES, HaloNetConfig
from foveal.models.halonet.hybrids import HYBRIDS
from foveal.models.halonet.parts import act, attention, channel_attention, convolution, stem
from foveal.models.image import FeatureInfo, classifier
from foveal.models.registry import register
from foveal.models.staged import StagedModel


@register({**SIZES, **HYBRIDS})
class HaloNet(StagedModel):
    """Bottleneck blocks with blocked local attention, for images of any size.

    Vaswani et al., "Scaling Local Self-Attention for Parameter Efficient Visual Backbones"
    (2021). Stages halve the map by attention with strided queries.

    Differs from the paper in: logits scaled by dim_head ** -0.5, and pixels beyond the map that
    are masked (`padding="attend"` reads them as zeros).

    Args:
        config: a HaloNetConfig; or give its keywords, which win where both are given:
            num_classes=1000, in_chans=3, depths=(3, 3, 7, 3), dims=(64, 128, 256, 512),
            heads=(4, 8, 8, 8), block_size=8, halo_size=3, ... See HaloNetConfig.

    Raises:
        ValueError: an unknown keyword or sizes that do not fit.

    Example:
        >>> import torch
        >>> from foveal.models import create_model
        >>> net = create_model("halonet_h0", num_classes=10)
        >>> net(torch.randn(2, 3, 64, 50)).shape
        torch.Size([2, 10])
    """

    family = "halonet"
    BETWEEN = "final"
    config_class = HaloNetConfig

    def __init__(self, config: HaloNetConfig | None = None, /, **options: Any) -> None:
        super().__init__()
        self.settings = c = HaloNetConfig.resolve(config, options)
        self.stem = stem(c)
        dim, reduction = (c.stem_dim, *c.stem_dims)[-1], c.stem_reduction
        self.stages, self.feature_info = nn.Sequential(), FeatureInfo(c.out_indices)
        rates = drop_path_rates(c.drop_path_rate, c.depths)
        for stage, stage_rates in enumerate(rates):
            blocks = []
            for i, rate in enumerate(stage_rates):
                stride = c.strides[stage] if i == 0 else 1
                blocks.append(HaloBlock(c, stage, i, dim, stride, reduction, rate))
                dim, reduction = blocks[-1].dim_out, reduction * stride
            self.stages.append(nn.Sequential(*blocks))
            self.feature_info.append(
                {"num_chs": dim, "reduction": reduction, "module": f"stages.{stage}"}
            )
        headless = c.features_only
        self.final = (
            nn.Identity()
            if headless or c.final_dim is None
            else _conv_bn(dim, c.final_dim, act(c))
        )
        self.num_features = dim if c.final_dim is None else c.final_dim
        self.head = classifier(self.head_hidden_size, 0 if headless else c.num_classes)
        self._init_weights()

    def _finish(self, x: Tensor) -> Tensor:
        return self.final(x)

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class HaloBlock(nn.Module):
    """1 x 1 convolution down, attention, 1 x 1 convolution up, around a shortcut.

    Args:
        c: configuration of the network.
        stage, block: which it is.
        dim: channels of the map.
        stride: of the attention and the shortcut.
        reduction: pixels of the image for each pixel of the map.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        c: HaloNetConfig,
        stage: int,
        block: int,
        dim: int,
        stride: int,
        reduction: int,
        drop_path: float,
    ) -> None:
        super().__init__()
        width = c.dims[stage] if c.inverted is None else round(dim * c.inverted)
        mixed = round(width * c.value_ratio)
        self.dim_out = c.dim_out(stage)
        self.reduce = _conv_bn(dim, width, act(c))
        kind = c.mixer(stage, block)
        if kind == "conv":
            self.mix: nn.Module = convolution(c, width, mixed, stride)
        else:
            self.mix = attention(c, kind, stage, width, mixed, stride, reduction)
        self.norm = nn.Sequential(nn.BatchNorm2d(mixed), act(c))
        self.gate = channel_attention(c, mixed) if kind == "conv" else nn.Identity()
        self.expand = _conv_bn(mixed, self.dim_out, nn.Identity())
        self.drop_path = DropPath(drop_path)
        same = dim == self.dim_out and stride == 1
        self.shortcut: nn.Module | None = nn.Identity() if same else None
        if not same and c.inverted is None:
            self.shortcut = _conv_bn(dim, self.dim_out, nn.Identity(), stride)
        self.act = act(c) if c.inverted is None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, dim, height, width) -> (batch, dim_out, height / stride, width / stride)."""
        y = self.drop_path(self.expand(self.gate(self.norm(self.mix(self.reduce(x))))))
        return self.act(y if self.shortcut is None else self.shortcut(x) + y)


def _conv_bn(dim_in: int, dim_out: int, act: nn.Module, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        PointwiseConv(dim_in, dim_out, bias=False, stride=stride), nn.BatchNorm2d(dim_out), act
    )
