"""What tasks share whose models name classes: pictures and sequences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveal.data.sampling import spread
from foveal.draw.confusion import draw_confusion
from foveal.draw.report import Section
from foveal.recipes.charts import Entries, chart, score_curve
from foveal.recipes.kind import Kind, KindTask, Run
from foveal.training.dealing import dealt
from foveal.training.task import Totals


class Classifier(Kind):
    """Classifiers, scored by how often they are right.

    Attributes:
        quick: examples that are scored while training.
        batch: examples that are scored at once.
    """

    score = "accuracy"
    assets: tuple[str, ...] = ("classes",)
    quick: int
    batch: int
    forms: ClassVar = {
        "accuracy": ("top-1 accuracy, held out", "{:.1%}"),
        "balanced_accuracy": ("mean over classes accuracy, held out", "{:.1%}"),
    }
    labels: ClassVar = {
        "accuracy": ("top-1 accuracy", "{:.2%}"),
        "top5": ("top-5 accuracy", "{:.2%}"),
        "balanced_accuracy": ("balanced accuracy", "{:.2%}"),
    }
    counted = "images"
    loss_label = "cross-entropy (nats)"

    def answer(self, model: nn.Module, read: Any, data: Any, quick: bool) -> Tensor:
        """Logits or shares (batch, classes), float32 on the CPU.

        Args:
            read: what the examples give for a batch.
            data: the [data] of the run.
        """
        raise NotImplementedError

    def answers(
        self, model: nn.Module, examples: Any, index: Tensor, data: Any, quick: bool = False
    ) -> Tensor:
        """Those of all examples at `index`, int64 (n,): (n, classes)."""
        parts = index.split(self.batch)
        said = dealt(parts, lambda part: self.answer(model, examples.read(part), data, quick))
        return torch.cat([torch.zeros(0, len(examples.classes)), *said])

    def evaluate(self, task: KindTask, *, quick: bool, rank: int, world_size: int) -> Totals:
        """Shares of right answers, on a sample."""
        examples, data = task.held_out, task.config.data
        chosen = spread(len(examples), self.quick if quick else self.most(data))
        mine = chosen[rank::world_size]
        said = self.answers(task.model, examples, mine, data, quick)
        return class_totals(said, examples.labels[mine], examples.labels[chosen])

    def measure(self, run: Run, model: Any, found: Any, **options: Any) -> dict[str, Any]:
        """Shares of right answers, and what is taken for what: rows are true classes.

        Raises:
            FloatingPointError: the model says nothing that is a number.
        """
        said = self.answers(model, found, torch.arange(len(found)), run.config.data)
        if not said.isfinite().all():
            raise FloatingPointError(
                f"the model of {run.folder} gives NaN or infinity; train it again."
            )
        totals = class_totals(said, found.labels, found.labels)
        number = len(found.classes)
        confusion = (found.labels * number + said.argmax(1)).bincount(minlength=number**2)
        shares = {name: total / count for name, (total, count) in totals.items()}
        return {
            "accuracy": shares["accuracy"],
            "top5": shares.get("top5"),  # of five classes or fewer there are no top five
            "balanced_accuracy": shares["balanced_accuracy"],
            "classes": found.classes,
            "confusion": confusion.view(number, number).tolist(),
            "images": len(found),
            "skipped": len(found.skipped),
            "unit": self.things,
        }

    def table(self, score: Mapping[str, Any], folder: Path) -> list[str]:
        """The shares, then each class: how many there are, recall and precision."""
        width = max(len("class"), *map(len, score["classes"]))
        lines = super().table(score, folder)
        lines += ["", f"{'class':<{width}}  {self.things:>9}  recall  precision"]
        counts = torch.tensor(score["confusion"]).double()
        right, said, there = counts.diag(), counts.sum(0), counts.sum(1)
        for i, name in enumerate(score["classes"]):
            shares = f"{_share(right[i], there[i]):>6}  {_share(right[i], said[i]):>9}"
            lines.append(f"{name:<{width}}  {int(there[i]):>9,}  {shares}")
        picture = folder / "pictures" / "confusion.png"
        return lines + (["", f"confusion matrix  {picture}"] if picture.exists() else [])

    def charts(self, pictures: Path, entries: Entries) -> list[tuple[str, Path]]:
        """The training loss, and how often the model is right."""
        right = score_curve(entries, "accuracy", "top-1", 100)
        right += score_curve(entries, "balanced_accuracy", "mean over classes", 100)
        title = "Right answers on held-out data"
        return super().charts(pictures, entries) + chart(
            title, right, pictures / "accuracy.png", "right, %"
        )

    def score_section(self, pictures: Path, score: Mapping[str, Any]) -> Section:
        """Also the confusion matrix."""
        path = draw_confusion(score["confusion"], score["classes"], pictures / "confusion.png")
        drawn = [("What is taken for what", path)]
        return replace(super().score_section(pictures, score), pictures=drawn)


def _share(part: Tensor, whole: Tensor) -> str:
    """A dash where there was nothing to be right about."""
    return f"{float(part / whole):.1%}" if whole else "-"


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
