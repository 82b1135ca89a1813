"""What image models share: stages, a classifier that can be replaced, pyramids of features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn

from foveal.common.by_example import dropout
from foveal.common.checks import check_dense
from foveal.layers.checks import check_dropout, check_sizes
from foveal.layers.rows import HERE, Rows
from foveal.layers.weights import dtype_of
from foveal.models.base import Model
from foveal.models.config import ModelConfig
from foveal.ops.define import is_beyond_functions
from foveal.patterns.sizes import pair

GlobalPool = Literal["avg", "max", "avgmax", "catavgmax", ""]


@dataclass(frozen=True, kw_only=True)
class ImageConfig(ModelConfig):
    """Keywords of all image models.

    Attributes:
        num_classes: outputs of the classifier; 0 for none, which gives pooled features.
        in_chans: channels of an image; also called `channels`.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block; earlier blocks have less.
        features_only: no head; the model returns the maps of its stages.
        out_indices: which stages those are; None = all.
        global_pool: "avg"; "max"; "avgmax", the mean of both; "catavgmax", one after the other; or
            "" for none: the head then works on every pixel of the last map.
    """

    num_classes: int = 1000
    in_chans: int = 3
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    features_only: bool = False
    out_indices: tuple[int, ...] | None = None
    global_pool: GlobalPool = "avg"

    @classmethod
    def resolve(cls, config: Self | None, options: dict[str, Any]) -> Self:
        if "channels" in options and "in_chans" not in options:
            options = dict(options)
            options["in_chans"] = options.pop("channels")
        return super().resolve(config, options)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sizes(in_chans=self.in_chans)
        if self.num_classes < 0:
            raise ValueError(f"num_classes must not be negative, got {self.num_classes}.")
        check_dropout(self.drop_rate)
        check_dropout(self.drop_path_rate)


class FeatureInfo(list[dict[str, Any]]):
    """What each stage gives: its `num_chs`, `reduction` and `module`; the columns as in timm."""

    def __init__(self, out_indices: tuple[int, ...] | None = None) -> None:
        super().__init__()
        self.out_indices = out_indices

    def channels(self, idx: int | None = None) -> Any:
        """Channels of the chosen stages, or of stage `idx`."""
        return self._column("num_chs", idx)

    def reduction(self, idx: int | None = None) -> Any:
        """Pixels of the image for each pixel of the map, likewise."""
        return self._column("reduction", idx)

    def module_name(self, idx: int | None = None) -> Any:
        """Names of the modules, likewise."""
        return self._column("module", idx)

    def _column(self, key: str, idx: int | None) -> Any:
        if idx is not None:
            return self[idx][key]
        chosen = range(len(self)) if self.out_indices is None else self.out_indices
        return [self[at][key] for at in chosen]


class ImageModel(Model):
    """Base of image models: subclasses define `_stages` and build their layers.

    Attributes:
        grad_checkpointing: see `set_grad_checkpointing`.
        feature_info: for each stage its `num_chs`, `reduction` (pixels of the image per pixel of
            the map) and `module` (name).
        num_features: channels of the last map, as `forward_features` gives it.
        rows: what pools the last map.
    """

    pipeline_tag = "image-classification"
    settings: ImageConfig
    feature_info: FeatureInfo
    num_features: int
    grad_checkpointing = False
    rows: Rows = HERE

    # -- what a subclass defines ------------------------------------------------------------

    def _stages(self, x: Tensor) -> Iterator[Tensor]:
        """The maps (batch, dim, height, width) after each stage."""
        raise NotImplementedError

    def _finish(self, x: Tensor) -> Tensor:
        """What comes between the last stage and the head; a map to a map."""
        return x

    def _pool(self, x: Tensor) -> Tensor:
        """Map -> features (batch, head_hidden_size)."""
        kind = self.settings.global_pool
        if kind in ("avg", ""):
            return self._mean(x)
        most = self.rows.most(x)
        if kind == "max":
            return most
        both = (self._mean(x), most)
        return torch.cat(both, 1) if kind == "catavgmax" else (both[0] + both[1]) / 2

    def get_classifier(self) -> nn.Module:
        """The last layer: a Linear, or an Identity without classes."""
        raise NotImplementedError

    def _set_classifier(self, layer: nn.Module) -> None:
        raise NotImplementedError

    def _mean(self, x: Tensor) -> Tensor:
        """Mean over the pixels of what is pooled; without pooling that is a pixel of its own."""
        return self.rows.mean(x) if self.settings.global_pool else x.mean((2, 3))

    # -- the public face --------------------------------------------------------------------

    @property
    def num_classes(self) -> int:
        """Outputs of the classifier; 0 without one."""
        return self.settings.num_classes

    @property
    def in_chans(self) -> int:
        """Channels of an image."""
        return self.settings.in_chans

    @property
    def global_pool(self) -> str:
        """How the last map becomes features; see ImageConfig."""
        return self.settings.global_pool

    @property
    def head_hidden_size(self) -> int:
        """Features that the classifier reads."""
        return self.num_features * (2 if self.settings.global_pool == "catavgmax" else 1)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters to be trained without weight decay, beside vectors."""
        return set()

    def forward(self, x: Tensor) -> Any:
        """Images (batch, channels, height, width) -> logits (batch, num_classes).

        With `features_only` a list of maps, one for each chosen stage.
        """
        if self.settings.features_only:
            return self.forward_intermediates(
                x, self.settings.out_indices, intermediates_only=True
            )
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images -> the last map (batch, dim, height, width), before pooling."""
        self._check(x)
        *_, last = self._stages(x)
        return self._finish(last)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map (batch, features, height, width) -> logits (batch, num_classes).

        Or with `pre_logits` the pooled features (batch, features). Without pooling
        both are maps: (batch, num_classes or num_features, height, width).
        """
        pooled = self.settings.global_pool != ""
        shape = (x.shape[0], *x.shape[2:])
        if not pooled:  # every pixel is a map of its own
            x = x.movedim(1, -1).flatten(0, 2)[:, :, None, None]
        x = dropout(self._pool(x), self.settings.drop_rate, self.training)
        x = self.rows.agreed(x) if pooled and self.training and self.settings.drop_rate else x
        x = x if pre_logits else self.get_classifier()(x)
        return x if pooled else x.unflatten(0, shape).movedim(-1, 1)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: Sequence[int] | int | None = None,
        *,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The maps of chosen stages.

        Args:
            x: images (batch, channels, height, width).
            indices: stages, negative ones from the end; an int for that many last ones; None for
                all.
            norm: the map of the last stage as `forward_features` gives it.
            stop_early: with `intermediates_only`, compute no stage after the last chosen one.
            output_fmt: "NCHW", or "NHWC" for maps with the channels last.
            intermediates_only: return the maps alone.

        Returns:
            (last map as of `forward_features`, maps), or the maps.

        Raises:
            ValueError: an index that is no stage, or another format.
        """
        if output_fmt not in ("NCHW", "NHWC"):
            raise ValueError(f"output_fmt must be 'NCHW' or 'NHWC', got {output_fmt=}.")
        self._check(x)
        wanted, count = self._indices(indices), len(self.feature_info)
        needed = max(wanted, default=-1) + 1 if stop_early and intermediates_only else count
        maps = list(islice(self._stages(x), needed))
        whole = not intermediates_only or (norm and count - 1 in wanted)
        last = self._finish(maps[-1]) if whole else None
        if last is not None and norm:
            maps[-1] = last
        chosen = [maps[at] for at in wanted]
        if output_fmt == "NHWC":
            chosen = [one.movedim(1, -1) for one in chosen]
        return chosen if intermediates_only else (last, chosen)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only the maps between stages for the backward pass, and compute the rest again."""
        self.grad_checkpointing = enable

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier with random weights; 0 for none.

        Args:
            num_classes: its outputs.
            global_pool: as in ImageConfig, from now on; None leaves it.
        """
        # the configuration follows, so that a saved model loads again
        fields = {**self.settings.to_dict(), "num_classes": num_classes}
        fields |= {} if global_pool is None else {"global_pool": global_pool}
        self.settings = type(self.settings)(**fields)
        weight = next(self.parameters())
        self._set_classifier(
            classifier(self.head_hidden_size, num_classes).to(weight.device, weight.dtype)
        )

    def example_inputs(self, length: Any = None) -> tuple[Tensor, ...]:
        """A picture without values, of 224 x 224 pixels unless its size is given."""
        size = pair(224 if length is None else length, "length")
        shape = (1, self.settings.in_chans, *size)
        return (torch.empty(shape, dtype=dtype_of(self), device="meta"),)

    # -- inside -----------------------------------------------------------------------------

    def _run(self, stage: nn.Module, x: Tensor) -> Tensor:
        """One stage of `_stages`."""
        if not (self.grad_checkpointing and torch.is_grad_enabled()):
            return cast(Tensor, stage(x))
        from torch.utils.checkpoint import checkpoint

        return cast(Tensor, checkpoint(stage, x, use_reentrant=False))

    def _check(self, x: Tensor) -> None:
        check_dense("x", x)
        channels = self.settings.in_chans
        if x.ndim != 4 or x.shape[1] != channels:
            raise ValueError(
                f"x must be images (batch, {channels}, height, width), got {tuple(x.shape)}."
            )
        if not x.is_floating_point():  # how they are normalised, only who trained it knows
            raise ValueError(
                f"x must be floating-point images as in training, got {x.dtype}; scale them to "
                "numbers from 0 to 1 and normalise them."
            )

    def _indices(self, indices: Sequence[int] | int | None) -> list[int]:
        count = len(self.feature_info)
        if isinstance(indices, int):
            if not 0 < indices <= count:
                raise ValueError(
                    f"indices must be 1 to {count}, the last stages, or a list, got {indices=}."
                )
            indices = range(count - indices, count)
        chosen = list(range(count) if indices is None else indices)
        if any(not -count <= i < count for i in chosen):
            raise ValueError(f"indices must be stages below {count}, got {chosen}.")
        return [i % count for i in chosen]


def classifier(features: int, num_classes: int) -> nn.Module:
    """A Linear with small random weights, or an Identity for 0 classes."""
    if not num_classes:
        return nn.Identity()
    layer = nn.Linear(features, num_classes)
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    return layer


def channels_last(x: Tensor) -> Tensor:
    """Maps (batch, channels, height, width), channels last in memory; as they lie in torch.func.

    torch.vmap knows no such layout.
    """
    return x if is_beyond_functions(x) else x.contiguous(memory_format=torch.channels_last)
