"""What the three tasks on captioned pictures share: their data, scores and sheets of pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from foveal.data.captions import CAPTIONED, CaptionedSet
from foveal.draw.report import Section
from foveal.recipes.charts import (
    Entries,
    chart,
    heading,
    loss_curves,
    score_curve,
    scored,
    shown,
)
from foveal.recipes.kind import Kind, KindTask, Run

SHEETS = {
    "reconstructions.png": "Held-out pictures, and below each what comes back from its tokens",
    "drawn.png": "Pictures that the model draws for captions it has never seen",
}
"""Contact sheets in a run's folder of pictures, with their captions."""

SCORES = {
    "bits_per_image_token": ("bits per image token", "{:.3f}"),
    "psnr": ("PSNR of reconstructions, dB", "{:.2f}"),
    "codebook_used": ("share of the codebook in use", "{:.1%}"),
    "codebook_perplexity": ("perplexity of the codebook", "{:.1f}"),
    "top1": ("right caption first", "{:.1%}"),
    "top10": ("right caption in the first 10", "{:.1%}"),
    "drawn_top1": ("drawn pictures: right caption first", "{:.1%}"),
    "drawn_top10": ("drawn pictures: right caption in the first 10", "{:.1%}"),
    "chance_top10": ("by chance in the first 10", "{:.1%}"),
}
"""Scores of these runs, in the order in which they are shown: label, format."""

_FORMS = {name: SCORES[name] for name in ("bits_per_image_token", "psnr", "top10")}


class Captioned(Kind):
    """Models of captioned pictures."""

    reader = CAPTIONED
    unit, things = "images", "pictures"
    limit = 2000
    forms: ClassVar = _FORMS

    def facts(self, task: KindTask) -> dict[str, str]:
        """How many files were left out."""
        skipped = len(set(task.train.skipped + task.held_out.skipped))
        return {"skipped files": f"{skipped:,}"} if skipped else {}

    def measure(self, run: Run, model: Any, found: CaptionedSet, **options: Any) -> dict[str, Any]:
        """Several scores, and of how many pictures."""
        scores = self.scores(run, model, found)
        return {"scores": scores, "pictures": len(found), "skipped": len(found.skipped)}

    def scores(self, run: Run, model: Any, found: CaptionedSet) -> dict[str, float]:
        """Those of `SCORES` that the task knows."""
        raise NotImplementedError

    def table(self, score: Mapping[str, Any], folder: Path) -> list[str]:
        """What was scored, and each score."""
        rows = shown(score["scores"], SCORES)
        width = max(map(len, rows))
        lines = heading(score, score["pictures"], self.things)
        return lines + [f"{label:<{width}}  {value}" for label, value in rows.items()]

    def sections(
        self, pictures: Path, entries: Entries, score: dict[str, Any] | None
    ) -> Iterator[Section]:
        """Contact sheets, training curves, and the score."""
        sheets = [(text, pictures / name) for name, text in SHEETS.items()]
        drawn = [(text, path) for text, path in sheets if path.exists()]
        if drawn:
            yield Section("Pictures", pictures=drawn)
        loss = loss_curves(entries)
        if loss[0].x:
            curves = chart("Training loss", loss, pictures / "training.png", "loss")
            for name, (label, _) in _FORMS.items():
                points = score_curve(entries, name, "")
                curves += chart(f"Held out: {label}", points, pictures / f"{name}.png", label)
            yield Section("Training", pictures=curves)
        if score:
            rows = shown(score["scores"], SCORES)
            rows |= scored(score, score["pictures"], self.things)
            yield Section("Held-out score", rows=rows)
