"""Image models that are a stem, stages one after the other, and one Linear as their head."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from foveal.layers.relative_position import Size
from foveal.models.image import ImageConfig, ImageModel, channels_last


@dataclasses.dataclass(frozen=True, kw_only=True)
class StagedConfig(ImageConfig):
    """Keywords of staged models: those named in `PER_STAGE` have an entry for each stage.

    Attributes:
        strides: of the stages.
        image_size: of images in training, (height, width) or an int; any other works as well.
    """

    PER_STAGE: ClassVar[tuple[str, ...]] = ("depths", "dims", "heads", "strides")

    strides: tuple[int, ...] = (1, 2, 2, 2)
    image_size: Size = 224

    @property
    def stem_reduction(self) -> int:
        """Pixels of the image for each pixel that the stem leaves, along each axis."""
        raise NotImplementedError

    @property
    def first_conv(self) -> str:
        """Name of the convolution that reads the image."""
        return "stem.0"

    def first(self, count: int) -> dict[str, Any]:
        """The keywords that change where only the first `count` stages are left."""
        return {name: getattr(self, name)[:count] for name in self.PER_STAGE}


class StagedModel(ImageModel):
    """Base of staged models: subclasses build `stem`, `stages`, `head` and what lies between.

    Attributes:
        BETWEEN: name of the module between the last stage and the head.
    """

    BETWEEN: ClassVar[str]
    settings: StagedConfig
    stem: nn.Sequential
    stages: nn.Sequential
    head: nn.Module

    def get_classifier(self) -> nn.Module:
        return self.head

    def _set_classifier(self, layer: nn.Module) -> None:
        self.head = layer

    def _stages(self, x: Tensor) -> Iterator[Tensor]:
        # attention reads pixels as rows of channels, so the whole network keeps channels last
        x = self.stem(channels_last(x))
        for stage in self.stages:
            x = self._run(stage, x)
            yield x

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Expressions that sort parameters by depth, as timm's layer-wise learning rates ask.

        Args:
            coarse: whole stages, not blocks.
        """
        before = r"^stages\.(\d+)\.(?:embed|norm)\."
        return {
            "stem": r"^stem",
            "blocks": [
                (r"^stages\.(\d+)", None)
                if coarse
                else (r"^stages\.(\d+)\.(?:blocks\.)?(\d+)\.", None),
                (before, (-1,)),
                (r"^stages\.(\d+)\.peg\.", (0,)),
                (rf"^{self.BETWEEN}\.", (99999,)),
            ],
        }

    def prune_intermediate_layers(
        self,
        indices: Sequence[int] | int = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Take away what the maps of chosen stages do not need; the model then returns them.

        Args:
            indices: the stages, as in `forward_intermediates`.
            prune_norm: also what comes between the last stage and the head.
            prune_head: also the classifier. Both go where the last stages go.

        Returns:
            The stages, counted from the first.
        """
        wanted = self._indices(indices)
        count = max(wanted, default=0) + 1
        fields: dict[str, Any] = {}
        if count < len(self.stages):
            fields = self.settings.first(count)
            del self.stages[count:]
            del self.feature_info[count:]
            prune_norm = prune_head = True
        if prune_norm:
            setattr(self, self.BETWEEN, nn.Identity())
            self.num_features = self.feature_info[-1]["num_chs"]
        if prune_head:
            self.head = nn.Identity()
            fields["num_classes"] = 0
        if prune_norm and prune_head:
            fields |= {"features_only": True, "out_indices": tuple(wanted)}
            self.feature_info.out_indices = tuple(wanted)
        # the configuration follows, so that a saved model loads again
        self.settings = dataclasses.replace(self.settings, **fields)
        return wanted
