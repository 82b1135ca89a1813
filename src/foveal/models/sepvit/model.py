"""SepViT as its authors wrote it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from foveal.common.meta import draw_truncated
from foveal.layers.dropout import Dropout
from foveal.layers.patch import (
    PEG,
    DropPath,
    OverlappingPatchEmbed,
    as_map,
    drop_path_rates,
    tokens,
)
from foveal.layers.separable import SeparableAttention
from foveal.models.image import FeatureInfo, classifier
from foveal.models.registry import register
from foveal.models.sepvit.config import SIZES, SepVisionTransformerConfig
from foveal.models.staged import StagedModel

EPS = 1e-6


@register(SIZES)
class SepVisionTransformer(StagedModel):
    """Separable vision transformer: overlapping patches, separable attention, four stages.

    Li et al., "SepViT: Separable Vision Transformer" (2022), after the authors' code, with its
    parameter counts. Images of any size: maps are padded to windows, and the padding is masked.

    Differs from the authors' code in: sizes other than that of training work (window tokens are
    interpolated, blocks that are global in training stay global).

    Args:
        config: a SepVisionTransformerConfig; or give its keywords, which win where both are
            given: num_classes=1000, in_chans=3, depths=(1, 2, 6, 2), dims=(32, 64, 128, 256),
            heads=(1, 2, 4, 8), image_size=224, ... See SepVisionTransformerConfig.

    Raises:
        ValueError: an unknown keyword or sizes that do not fit.

    Example:
        >>> import torch
        >>> from foveal.models import create_model
        >>> net = create_model("sepvit_lite", num_classes=10)
        >>> net(torch.randn(2, 3, 97, 131)).shape
        torch.Size([2, 10])
    """

    family = "sepvit"
    BETWEEN = "norm"
    config_class = SepVisionTransformerConfig

    def __init__(
        self, config: SepVisionTransformerConfig | None = None, /, **options: Any
    ) -> None:
        super().__init__()
        self.settings = c = SepVisionTransformerConfig.resolve(config, options)
        self.stages, self.feature_info = nn.Sequential(), FeatureInfo(c.out_indices)
        self.stem = early_convolutions(c.in_chans, c.stem_dims)
        dim_in, reduction = (c.in_chans, *c.stem_dims)[-1], c.stem_reduction
        rates = drop_path_rates(c.drop_path_rate, c.depths)
        for stage, stage_rates in enumerate(rates):
            self.stages.append(SepStage(c, stage, dim_in, stage_rates))
            dim_in = c.dims[stage]
            reduction *= c.strides[stage]
            self.feature_info.append(
                {"num_chs": dim_in, "reduction": reduction, "module": f"stages.{stage}"}
            )
        self.num_features = dim_in
        headless = c.features_only
        self.norm = nn.Identity() if headless else nn.LayerNorm(dim_in, eps=EPS)
        self.head = classifier(self.head_hidden_size, 0 if headless else c.num_classes)
        self._init_weights()

    def _finish(self, x: Tensor) -> Tensor:
        return as_map(self.norm(tokens(x)))

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                draw_truncated(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d):
                fan_out = module.weight[:, 0].numel() // module.groups
                nn.init.normal_(module.weight, std=(2.0 / fan_out) ** 0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that the authors train without weight decay."""
        return {name for name, _ in self.named_parameters() if name.endswith("win_tokens")}


def early_convolutions(dim_in: int, dims: tuple[int, ...]) -> nn.Sequential:
    """3 x 3 convolutions, normalised over the batch, the first of stride 2; nothing for no dims.

    (batch, dim_in, height, width) -> (batch, dims[-1], height / 2, width / 2).
    """
    layers: list[nn.Module] = []
    for number, dim in enumerate(dims):
        conv = nn.Conv2d(dim_in, dim, 3, stride=1 if number else 2, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(dim), nn.GELU()]
        dim_in = dim
    return nn.Sequential(*layers)


class SepStage(nn.Module):
    """Patches, then blocks; the first block is followed by a positional encoding.

    Args:
        c: configuration of the network.
        stage: index of the stage.
        dim_in: channels of the map that comes in.
        rates: stochastic depth of each block.
    """

    def __init__(
        self, c: SepVisionTransformerConfig, stage: int, dim_in: int, rates: list[float]
    ) -> None:
        super().__init__()
        dim, size, windows = c.dims[stage], c.grids()[stage], c.window_sizes[stage]
        kernel = c.stem_kernel if stage == 0 else None
        if kernel is None:
            kernel = max(3, 2 * c.strides[stage] - 1)
        self.embed = OverlappingPatchEmbed(dim_in, dim, c.strides[stage], kernel)
        self.norm = nn.LayerNorm(dim)
        self.drop = Dropout(c.proj_drop_rate)
        self.blocks = nn.ModuleList()
        for i, rate in enumerate(rates):
            window = windows[i % len(windows)]
            grid = (-(-size[0] // window), -(-size[1] // window))
            self.blocks.append(SepBlock(c, dim, c.heads[stage], window, grid, rate))
        self.peg = PEG(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, dim_in, height, width) -> (batch, dim, height / stride, width / stride)."""
        x = self.drop(self.norm(tokens(self.embed(x))))
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i == 0:
                x = tokens(self.peg(as_map(x)))
        return as_map(x)


class SepBlock(nn.Module):
    """Separable attention and a feed-forward layer, each around a shortcut.

    Args:
        c: configuration of the network.
        dim, heads, window_size, grid: as in SeparableAttention.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        c: SepVisionTransformerConfig,
        dim: int,
        heads: int,
        window_size: int,
        grid: tuple[int, int],
        drop_path: float,
    ) -> None:
        super().__init__()
        self.attn = SeparableAttention(
            dim,
            heads,
            window_size,
            grid,
            window_tokens=c.window_tokens,
            dropout=c.attn_drop_rate,
            proj_dropout=c.proj_drop_rate,
            qkv_bias=c.qkv_bias,
            eps=EPS,
        )
        hidden = round(dim * c.mlp_ratio)
        self.ff = nn.Sequential(
            nn.LayerNorm(dim, eps=EPS),
            nn.Linear(dim, hidden),
            nn.GELU(),
            Dropout(c.proj_drop_rate),
            nn.Linear(hidden, dim),
            Dropout(c.proj_drop_rate),
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, height, width, dim) -> same."""
        x = x + self.drop_path(self.attn(x))
        return x + self.drop_path(self.ff(x))
