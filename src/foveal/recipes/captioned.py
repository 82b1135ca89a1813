"""What the three tasks on captioned pictures share: their data, scores and sheets of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from foveal.data.caption_sources import CAPTIONED
from foveal.data.captioned_set import CaptionedSet
from foveal.recipes.charts import Entries, chart, score_curve
from foveal.recipes.kind import Kind, KindTask, Run

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


class Captioned(Kind):
    """Models of captioned pictures."""

    reader = CAPTIONED
    unit, things = "images", "pictures"
    limit = 2000
    labels: ClassVar = SCORES
    forms: ClassVar = {name: SCORES[name] for name in ("bits_per_image_token", "psnr", "top10")}
    sheets: ClassVar = {
        "reconstructions.png": "Held-out pictures, and below each what comes back from its tokens",
        "drawn.png": "Pictures that the model draws for captions it has never seen",
    }

    def facts(self, task: KindTask) -> dict[str, str]:
        skipped = len(set(task.train.skipped + task.held_out.skipped))
        return {"skipped files": f"{skipped:,}"} if skipped else {}

    def measure(self, run: Run, model: Any, found: CaptionedSet, **options: Any) -> dict[str, Any]:
        """Several scores, and of how many pictures."""
        scores = self.scores(run, model, found)
        return {"scores": scores, "pictures": len(found), "skipped": len(found.skipped)}

    def scores(self, run: Run, model: Any, found: CaptionedSet) -> dict[str, float]:
        """Those of `SCORES` that the task knows."""
        raise NotImplementedError

    def charts(self, pictures: Path, entries: Entries) -> list[tuple[str, Path]]:
        """The training loss, and the scores on the way."""
        found = super().charts(pictures, entries)
        for name, (label, _) in self.forms.items():
            points = score_curve(entries, name, "")
            found += chart(f"Held out: {label}", points, pictures / f"{name}.png", label)
        return found
