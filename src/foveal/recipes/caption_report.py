"""The parts of a report that only runs on captioned pictures have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from foveal.recipes.image_report import draw_loss

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

_CARDS = ("bits_per_image_token", "psnr", "top10")


def caption_rows(scores: Mapping[str, float]) -> dict[str, str]:
    """Label -> value of the scores that there are."""
    return {
        label: form.format(scores[name])
        for name, (label, form) in SCORES.items()
        if name in scores
    }


def caption_cards(scores: Mapping[str, Any]) -> dict[str, str]:
    """The few scores that matter, of result.json or evaluation.json."""
    found = scores.get("scores", scores)
    return caption_rows({name: found[name] for name in _CARDS if name in found})


def caption_sections(
    pictures: Path, entries: Sequence[dict[str, float]], evaluation: dict[str, Any] | None
) -> Iterator[Any]:
    """Contact sheets, training curves, and the score.

    Args:
        pictures: the folder for them.
        entries: of metrics.jsonl.
        evaluation: of evaluation.json, if the run has been scored.
    """
    from foveal.draw.report import Section

    sheets = [(text, pictures / name) for name, text in SHEETS.items()]
    drawn = [(text, path) for text, path in sheets if path.exists()]
    if drawn:
        yield Section("Pictures", pictures=drawn)
    if any("loss" in entry for entry in entries):
        curves = [("Training loss", draw_loss(entries, pictures / "training.png", "loss"))]
        for name in ("bits_per_image_token", "psnr", "top10"):
            path = _draw_score(entries, name, pictures / f"{name}.png")
            if path is not None:
                curves.append((f"Held out: {SCORES[name][0]}", path))
        yield Section("Training", pictures=curves)
    if evaluation:
        rows = caption_rows(evaluation["scores"])
        rows["scored"] = f"{evaluation['pictures']:,} pictures of {evaluation['data']}, "
        rows["scored"] += f"checksum {evaluation['checksum']}"
        rows["checkpoint"] = evaluation["checkpoint"]
        yield Section("Held-out score", rows=rows)


def _draw_score(entries: Sequence[dict[str, float]], name: str, path: Path) -> Path | None:
    from foveal.draw.curves import Curve, draw_curves

    points = [
        (entry["step"], entry[key])
        for entry in entries
        for key in (f"valid/{name}", f"final/{name}")
        if key in entry
    ]
    if not points:
        return None
    x, y = zip(*points, strict=True)
    return draw_curves([Curve("", x, y, "points")], path, xlabel="step", ylabel=SCORES[name][0])
