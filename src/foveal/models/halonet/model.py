"""HaloNet: a residual network in which local attention replaces the 3 x 3 convolutions."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from foveal.layers.halo import HaloAttention
from foveal.layers.patch import DropPath, PointwiseConv, drop_path_rates
from foveal.models.halonet.config import SIZES, HaloNetConfig
from foveal.models.image import FeatureInfo, classifier
from foveal.models.registry import register
from foveal.models.staged import StagedModel


@register(SIZES)
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
        self.stem = nn.Sequential(
            nn.Conv2d(
                c.in_chans,
                c.stem_dim,
                c.stem_kernel,
                c.stem_stride,
                c.stem_kernel // 2,
                bias=False,
            ),
            nn.BatchNorm2d(c.stem_dim),
            nn.SiLU(),
            nn.MaxPool2d(3, 2, 1) if c.stem_pool else nn.Identity(),
        )
        dim, reduction = c.stem_dim, c.stem_reduction
        self.stages, self.feature_info = nn.Sequential(), FeatureInfo(c.out_indices)
        rates = drop_path_rates(c.drop_path_rate, c.depths)
        for stage, stage_rates in enumerate(rates):
            blocks = []
            for i, rate in enumerate(stage_rates):
                blocks.append(HaloBlock(c, stage, dim, c.strides[stage] if i == 0 else 1, rate))
                dim = blocks[-1].dim_out
            self.stages.append(nn.Sequential(*blocks))
            reduction *= c.strides[stage]
            self.feature_info.append(
                {"num_chs": dim, "reduction": reduction, "module": f"stages.{stage}"}
            )
        headless = c.features_only
        self.final = (
            nn.Identity()
            if headless or c.final_dim is None
            else _conv_bn(dim, c.final_dim, nn.SiLU())
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
        stage: index of the stage.
        dim: channels of the map.
        stride: of the attention and the shortcut.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self, c: HaloNetConfig, stage: int, dim: int, stride: int, drop_path: float
    ) -> None:
        super().__init__()
        width = c.dims[stage]
        self.dim_out = round(width * c.bottleneck_ratio)
        self.reduce = _conv_bn(dim, width, nn.SiLU())
        self.mix = _mixer(c, stage, stride)
        mixed = round(width * c.value_ratio)
        self.norm = nn.Sequential(nn.BatchNorm2d(mixed), nn.SiLU())
        self.expand = _conv_bn(mixed, self.dim_out, nn.Identity())
        self.drop_path = DropPath(drop_path)
        same = dim == self.dim_out and stride == 1
        self.shortcut = (
            nn.Identity() if same else _conv_bn(dim, self.dim_out, nn.Identity(), stride)
        )
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, dim, height, width) -> (batch, dim_out, height / stride, width / stride)."""
        y = self.expand(self.norm(self.mix(self.reduce(x))))
        return self.act(self.shortcut(x) + self.drop_path(y))


def _mixer(c: HaloNetConfig, stage: int, stride: int) -> nn.Module:
    """Attention, or in a hybrid's stage a convolution: `width` channels to width * value_ratio."""
    width, heads = c.dims[stage], c.heads[stage]
    if stage in c.conv_stages:
        return nn.Conv2d(width, round(width * c.value_ratio), 3, stride, 1, bias=False)
    return HaloAttention(
        width,
        c.block_size,
        c.halo_size,
        dim_head=width // heads,
        heads=heads,
        stride=stride,
        padding=c.padding,
        rel_pos=c.rel_pos,
        dropout=c.attn_drop_rate,
        value_ratio=c.value_ratio,
        out_proj=False,
    )


def _conv_bn(dim_in: int, dim_out: int, act: nn.Module, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        PointwiseConv(dim_in, dim_out, bias=False, stride=stride), nn.BatchNorm2d(dim_out), act
    )
