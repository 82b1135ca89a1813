"""SepViT with the signature and the parameters of vit-pytorch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import Tensor, nn

from foveal.layers.checks import check_dropout, check_sizes
from foveal.layers.dropout import Dropout
from foveal.layers.patch import (
    PEG,
    ChanLayerNorm,
    DropPath,
    OverlappingPatchEmbed,
    PointwiseConv,
    as_map,
    drop_path_rates,
    over_channels,
    tokens,
)
from foveal.layers.separable import DSSA
from foveal.models.config import ModelConfig, check_entries, check_range
from foveal.models.image import FeatureInfo, ImageModel, channels_last, classifier
from foveal.models.registry import register
from foveal.models.sepvit.config import check_stages


@dataclass(frozen=True, kw_only=True)
class SepViTConfig(ModelConfig):
    """Keywords of SepViT, those of vit-pytorch and some more.

    Attributes:
        num_classes: outputs of the classifier; 0 for none.
        dim: features of the first stage; each later stage doubles them.
        depth: blocks of each stage.
        heads: attention heads, for all stages or each.
        window_size: side of a window, for all stages or each.
        dim_head: features of a head.
        ff_mult: hidden features of the feed-forward layers, as a multiple.
        channels: of an image.
        dropout: on attention weights and features.
        drop_rate, drop_path_rate, features_only, out_indices, global_pool: as in ImageConfig.
    """

    num_classes: int = 1000
    dim: int = 32
    depth: tuple[int, ...] = (1, 2, 6, 2)
    heads: int | tuple[int, ...] = (1, 2, 4, 8)
    window_size: int | tuple[int, ...] = 7
    dim_head: int = 32
    ff_mult: float = 4
    channels: int = 3
    dropout: float = 0.0
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    features_only: bool = False
    out_indices: tuple[int, ...] | None = None
    global_pool: Literal["avg", ""] = "avg"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(dim=self.dim, dim_head=self.dim_head, channels=self.channels)
        check_dropout(self.dropout)
        check_dropout(self.drop_rate)
        check_dropout(self.drop_path_rate)
        check_range(0, num_classes=self.num_classes)
        check_stages(self, len(self.depth), ("heads", "window_size"))
        check_entries(1, heads=self.per_stage("heads"), window_size=self.per_stage("window_size"))
        check_entries(0, depth=self.depth)

    @property
    def in_chans(self) -> int:
        """The same as channels."""
        return self.channels

    def per_stage(self, name: str) -> tuple[int, ...]:
        """The values of a keyword, one for each stage."""
        value = getattr(self, name)
        return (value,) * len(self.depth) if isinstance(value, int) else value


@register({})
class SepViT(ImageModel):
    """The SepViT of vit-pytorch: same keywords, same parameters, any size of image.

    It is not the network of the paper, which is SepVisionTransformer: no grouped windows, one
    window token a layer, no inner shortcuts. `window_size` and `dim_head`, which vit-pytorch
    accepts and ignores, are honoured.

    Args:
        config: a SepViTConfig; or give its keywords, which win where both are given:
            num_classes=1000, dim=32, depth=(1, 2, 6, 2), heads=(1, 2, 4, 8), window_size=7,
            dim_head=32, ff_mult=4, channels=3, dropout=0., drop_path_rate=0., ...

    Raises:
        ValueError: an unknown keyword or sizes that do not fit.

    Example:
        >>> import torch
        >>> from foveal.models import SepViT
        >>> net = SepViT(num_classes=10, dim=32, depth=(1, 1), heads=(1, 2), window_size=4)
        >>> net(torch.randn(2, 3, 50, 70)).shape
        torch.Size([2, 10])
    """

    family = "sepvit_compact"
    config_class = SepViTConfig
    settings: SepViTConfig  # type: ignore[assignment]

    def __init__(self, config: SepViTConfig | None = None, /, **options: Any) -> None:
        super().__init__()
        self.settings = c = SepViTConfig.resolve(config, options)
        stages = len(c.depth)
        heads, windows = c.per_stage("heads"), c.per_stage("window_size")
        rates = drop_path_rates(c.drop_path_rate, c.depth)
        self.layers, self.feature_info = nn.ModuleList(), FeatureInfo(c.out_indices)
        dim_in = c.channels
        for stage in range(stages):
            dim = c.dim * 2**stage
            body = Stage(
                dim,
                rates[stage],
                c.dim_head,
                heads[stage],
                c.ff_mult,
                c.dropout,
                norm_output=stage < stages - 1,
                window_size=windows[stage],
            )
            embed = OverlappingPatchEmbed(dim_in, dim, 4 if stage == 0 else 2)
            self.layers.append(nn.ModuleList([embed, PEG(dim), body]))
            self.feature_info.append(
                {"num_chs": dim, "reduction": 4 * 2**stage, "module": f"layers.{stage}"}
            )
            dim_in = dim
        self.num_features = dim_in
        self.mlp_head = nn.Sequential(
            nn.Identity(),
            nn.Identity() if c.features_only else nn.LayerNorm(dim_in),
            classifier(dim_in, 0 if c.features_only else c.num_classes),
        )

    def get_classifier(self) -> nn.Module:
        return self.mlp_head[2]

    def _set_classifier(self, layer: nn.Module) -> None:
        self.mlp_head[2] = layer

    def _pool(self, x: Tensor) -> Tensor:
        return self.mlp_head[1](self._mean(x))

    def _stages(self, x: Tensor) -> Iterator[Tensor]:
        x = channels_last(x)
        for stage in self.layers:
            for part in cast(nn.ModuleList, stage):
                x = self._run(part, x)
            yield x


class Stage(nn.Module):
    """Blocks of separable attention and feed-forward layers.

    Args:
        dim, heads, window_size: of the stage.
        rates: stochastic depth of each block.
        dim_head, ff_mult, dropout: as in SepViTConfig.
        norm_output: end in a layer norm.
    """

    def __init__(
        self,
        dim: int,
        rates: Sequence[float],
        dim_head: int = 32,
        heads: int = 8,
        ff_mult: float = 4,
        dropout: float = 0.0,
        norm_output: bool = True,
        window_size: int = 7,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    DSSA(dim, heads, dim_head, dropout, window_size),
                    FeedForward(dim, ff_mult, dropout),
                ]
            )
            for _ in rates
        )
        self.drop_paths = nn.ModuleList(DropPath(rate) for rate in rates)
        self.norm = ChanLayerNorm(dim) if norm_output else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, dim, height, width) -> same."""
        for pair, drop in zip(self.layers, self.drop_paths, strict=True):
            for layer in cast(nn.ModuleList, pair):
                x = x + drop(layer(x))
        return self.norm(x)


class FeedForward(nn.Module):
    """Norm, 1 x 1 convolution, GELU, 1 x 1 convolution, on maps.

    Args:
        dim: channels.
        mult: hidden channels, as a multiple.
        dropout: on the hidden and the resulting features.
    """

    def __init__(self, dim: int, mult: float = 4, dropout: float = 0.0) -> None:
        super().__init__()
        inner = int(dim * mult)
        self.net = nn.Sequential(
            ChanLayerNorm(dim),
            PointwiseConv(dim, inner),
            nn.GELU(),
            Dropout(dropout),
            PointwiseConv(inner, dim),
            Dropout(dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, dim, height, width) -> same."""
        return as_map(over_channels(self.net, tokens(x)))
