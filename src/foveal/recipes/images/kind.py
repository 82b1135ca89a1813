"""The task of image classifiers: cross-entropy, and how often they are right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveal.common.dtypes import wide
from foveal.data.augment import to_floats
from foveal.data.hub_streams import StreamedImages, open_streamed_images
from foveal.data.image_hub import STREAM
from foveal.data.image_sources import PICTURES, images_to_score
from foveal.data.images import AugmentedImages, ImageDataConfig, ImageSet
from foveal.data.opening import check_data
from foveal.layers.weights import device_of
from foveal.recipes.classify import Classifier
from foveal.recipes.kind import KindTask, seeded_model
from foveal.recipes.settings import RunConfig

_MOST_PASSES = 10_000
_SHIFTS = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))


class Images(Classifier):
    """Classifiers of pictures."""

    reader = PICTURES
    data = ImageDataConfig
    unit, things = "images", "pictures"
    quick, batch = 1000, 250

    def build(self, config: RunConfig, **assets: Any) -> nn.Module:
        return seeded_model(
            config, num_classes=len(assets["classes"]), image_size=config.data.size
        )

    def open(self, data: ImageDataConfig) -> tuple[ImageSet | StreamedImages, ImageSet]:
        if not data.path.startswith(STREAM) or data.max_images:
            return super().open(data)
        check_data(data)
        train, held_out = open_streamed_images(data)
        return train, held_out or images_to_score(data, data.valid, train.classes)

    def source(self, task: KindTask) -> AugmentedImages | StreamedImages:
        if isinstance(task.train, StreamedImages):
            return task.train
        return AugmentedImages(task.train, task.config.data)

    def most(self, data: ImageDataConfig) -> int:
        """10,000 passes over pictures."""
        return max(self.quick, _MOST_PASSES // data.views)

    def loss(self, task: KindTask, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy in nats; images (batch, 3, h, w), targets (batch, classes)."""
        images, targets = batch
        smoothing = task.config.data.label_smoothing
        return F.cross_entropy(wide(model(images)), targets, label_smoothing=smoothing)

    def answer(self, model: nn.Module, read: Tensor, data: ImageDataConfig, quick: bool) -> Tensor:
        """Shares (batch, classes) of pictures; of one view each where it shall be quick."""
        return probabilities(model, read, 1 if quick else data.views)

    def facts(self, task: KindTask) -> dict[str, str]:
        size = task.config.data.size
        return {"pictures": f"{size} x {size} pixels"}


KIND = Images()


@torch.no_grad()
def probabilities(model: nn.Module, pixels: Tensor, views: int = 1) -> Tensor:
    """What a model says of pictures, averaged over views of each.

    Args:
        pixels: (batch, 3, h, w), bytes.
        views: as `ImageDataConfig.views`.

    Returns:
        Shares of (batch, classes), float32 on the CPU.
    """
    images = to_floats(pixels).to(device_of(model))
    mirrored = (images, images.flip(-1))[: min(views, 2)]
    shifts = _SHIFTS if views == 10 else _SHIFTS[:1]
    shares = [model(_shift(image, *by)).float().softmax(1) for image in mirrored for by in shifts]
    return torch.stack(shares).mean(0).cpu()


def _shift(images: Tensor, down: int, right: int) -> Tensor:
    """Move pictures by at most a pixel; the border is repeated where nothing moves in."""
    if not down and not right:
        return images
    rows, columns = images.shape[-2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    return padded[..., 1 - down : 1 - down + rows, 1 - right : 1 - right + columns]
