"""The task of image classifiers: cross-entropy, and how often they are right."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foveal.data.augment import to_floats
from foveal.data.image_sources import open_images
from foveal.data.images import AugmentedImages, ImageSet
from foveal.data.pictures import UnreadableImageError, load_square
from foveal.data.sampling import sampled, spread
from foveal.data.stream import Stream
from foveal.recipes.assets import CLASSES, class_names
from foveal.recipes.build import build_model
from foveal.recipes.config import RunConfig
from foveal.recipes.runs import write_json
from foveal.training.progress import tracked
from foveal.training.task import Totals

_QUICK_IMAGES = 1000
_MOST_PASSES = 10_000
_SCORING_BATCH = 250


def build_image_model(config: RunConfig, num_classes: int) -> nn.Module:
    """The model of a configuration, its weights drawn from the run's seed."""
    importlib.import_module("foveal.models")
    torch.manual_seed(config.training.seed)
    return build_model(
        config.model,
        f"recipe {config.recipe}",
        num_classes=num_classes,
        image_size=config.data.size,
    )


def rebuild(config: RunConfig, folder: Path) -> nn.Module:
    """The model of a run, with fresh weights."""
    return build_image_model(config, len(class_names(folder)))


class ImageTask:
    """Trains an image classifier. See `foveal.training.task.Task`."""

    unit = "images"
    score = "accuracy"

    def __init__(self, config: RunConfig, rank: int = 0, world_size: int = 1) -> None:
        data, training = config.data, config.training
        self.config = data
        self.train_images, self.valid_images = open_images(data)
        source = AugmentedImages(self.train_images, data)
        self.stream = Stream(source, training.batch_size, training.seed, rank, world_size)
        self.units_per_batch = training.batch_size
        self.classes = self.train_images.classes
        self.model = build_image_model(config, len(self.classes))

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Mean cross-entropy in nats; images (batch, 3, h, w), targets (batch, classes)."""
        images, targets = batch
        logits = model(images).float()
        return F.cross_entropy(logits, targets, label_smoothing=self.config.label_smoothing)

    def evaluate(self, *, quick: bool, rank: int = 0, world_size: int = 1) -> Totals:
        """Shares of right answers on 1,000 held-out pictures, or 10,000 passes over them."""
        images = self.valid_images
        limit = _QUICK_IMAGES if quick else most_images(self.config.views)
        chosen = spread(len(images), limit)
        labels = images.labels[chosen]
        mine = chosen[rank::world_size]
        shares = classify(self.model, images, mine, 1 if quick else self.config.views)
        return class_totals(shares, images.labels[mine], labels)

    def save_assets(self, folder: Path) -> None:
        """Write what the run needs besides its weights."""
        write_json(folder / CLASSES, self.classes)

    def facts(self) -> dict[str, str]:
        """What a report should say about the data and the model."""
        parameters = sum(p.numel() for p in self.model.parameters())
        return {
            "parameters": f"{parameters:,}",
            "classes": ", ".join(self.classes[:20]) + (" ..." if len(self.classes) > 20 else ""),
            "training data": _describe(self.train_images),
            "held-out data": _describe(self.valid_images),
            "pictures": f"{self.config.size} x {self.config.size} pixels",
            **sampled(len(self.valid_images), most_images(self.config.views), "pictures"),
        }


def _describe(images: ImageSet) -> str:
    return f"{images.name}: {len(images):,} pictures, checksum {images.checksum()}"


_SHIFTS = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))


@torch.no_grad()
def probabilities(model: nn.Module, pixels: Tensor, views: int = 1) -> Tensor:
    """What a model says of pictures, averaged over views of each.

    Args:
        pixels: (batch, 3, h, w), bytes.
        views: as `ImageDataConfig.views`.

    Returns:
        Shares of (batch, classes), float32 on the CPU.
    """
    images = to_floats(pixels).to(next(model.parameters()).device)
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


def most_images(views: int) -> int:
    """How many pictures are scored at most unless all are asked for: 10,000 passes."""
    return max(_QUICK_IMAGES, _MOST_PASSES // views)


def classify(model: nn.Module, images: ImageSet, index: Tensor, views: int = 1) -> Tensor:
    """The `probabilities` of pictures of a set, (len(index), classes)."""
    parts = [
        probabilities(model, images.read(part), views)
        for part in tracked(index.split(_SCORING_BATCH))
    ]
    return torch.cat(parts) if len(index) else torch.zeros(0, len(images.classes))


def class_totals(logits: Tensor, labels: Tensor, all_labels: Tensor) -> Totals:
    """Sums and counts; `all_labels` are those of every process, which the balance needs.

    Every answer of five is right where there are no more classes, so the top five are left out.
    """
    places = (logits > logits.gather(1, labels[:, None])).sum(1)
    right = (places == 0).double()
    share = 1.0 / all_labels.bincount(minlength=logits.shape[1]).double()[labels]
    count = float(len(labels))
    return {
        "accuracy": (float(right.sum()), count),
        "balanced_accuracy": (float((right * share).sum()), float(share.sum())),
    } | ({"top5": (float((places < 5).sum()), count)} if logits.shape[1] > 5 else {})


# -- what the commands ask for --------------------------------------------------------------------


@dataclass(frozen=True)
class ImageEvaluation:
    """A score on held-out pictures, or other things that have a class.

    Attributes:
        accuracy, top5, balanced_accuracy: shares from 0 to 1; the last is the mean over classes.
            There are no top five of five classes or fewer.
        classes: their names.
        confusion: rows are true classes, columns what the model said, counts.
        images: number of pictures; `skipped` of the data were not readable.
        data, checksum: what was scored.
        seconds: time that the scoring took.
        checkpoint: the weights that were scored.
        unit: what was scored, in the plural.
    """

    accuracy: float
    top5: float | None
    balanced_accuracy: float
    classes: list[str] = field(repr=False)
    confusion: list[list[int]] = field(repr=False)
    images: int
    skipped: int
    data: str
    checksum: str
    seconds: float
    checkpoint: str
    unit: str = "pictures"

    def per_class(self) -> list[tuple[str, int, float, float]]:
        """(name, pictures, recall, precision) of each class; NaN where there is none.

        A class that is not among the pictures has no recall, one that is never said no precision.
        """
        counts = torch.tensor(self.confusion).double()
        right, said, there = counts.diag(), counts.sum(0), counts.sum(1)
        return [
            (name, int(there[i]), float(right[i] / there[i]), float(right[i] / said[i]))
            for i, name in enumerate(self.classes)
        ]

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)


def score_images(
    model: nn.Module,
    images: Any,
    checkpoint: str,
    classes: Sequence[str],
    classify: Callable[[nn.Module, Any, Tensor], Tensor] = classify,
    unit: str = "pictures",
) -> ImageEvaluation:
    """Classify every picture of a set.

    Args:
        images: an ImageSet, or another set that `classify` knows, of what `unit` says.
        classify: (model, set, index) -> logits (len(index), classes).

    Raises:
        ValueError: the set has other classes than the model.
        FloatingPointError: the model says nothing that is a number.
    """
    if images.classes != list(classes):
        raise ValueError(
            f"the data must have the classes of the run, {', '.join(classes)}; got "
            f"{', '.join(images.classes)}."
        )
    started = time.perf_counter()
    logits = classify(model, images, torch.arange(len(images)))
    if not logits.isfinite().all():
        raise FloatingPointError(
            f"the model of {checkpoint} gives NaN or infinity; train it again."
        )
    totals = class_totals(logits, images.labels, images.labels)
    said, number = logits.argmax(1), len(images.classes)
    confusion = (images.labels * number + said).bincount(minlength=number**2).view(number, number)
    scores: dict[str, Any] = {name: total / count for name, (total, count) in totals.items()}
    scores.setdefault("top5", None)
    return ImageEvaluation(
        **scores,
        classes=images.classes,
        confusion=confusion.tolist(),
        images=len(images),
        skipped=len(images.skipped),
        data=images.name,
        checksum=images.checksum(),
        seconds=time.perf_counter() - started,
        checkpoint=checkpoint,
        unit=unit,
    )


@dataclass(frozen=True)
class Prediction:
    """What a model says about a picture.

    Attributes:
        path: of the picture.
        ranking: (class, probability), the likeliest first; empty if it could not be read.
        problem: why not.
    """

    path: str
    ranking: list[tuple[str, float]]
    problem: str = ""


def predict_pictures(
    model: nn.Module,
    paths: Sequence[str | Path],
    size: int,
    classes: Sequence[str],
    top: int = 5,
    views: int = 1,
) -> list[Prediction]:
    """The likeliest classes of picture files; unreadable ones are reported, not raised."""
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top=}.")
    found = []
    for path in paths:
        try:
            pixels = torch.from_numpy(load_square(path, size)).permute(2, 0, 1)[None]
        except UnreadableImageError as error:
            found.append(Prediction(str(path), [], str(error)))
            continue
        shares = probabilities(model, pixels, views)[0]
        values, places = shares.topk(min(top, len(classes)))
        ranking = [(classes[i], p) for i, p in zip(places.tolist(), values.tolist(), strict=True)]
        found.append(Prediction(str(path), ranking))
    return found
