"""What a run folder ends with: report.html and its pictures, made from the files beside them."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foveal.patterns.serialize import from_config
from foveal.recipes.caption_report import caption_cards, caption_sections
from foveal.recipes.config import RunConfig
from foveal.recipes.image_report import image_sections
from foveal.recipes.pixel_report import pixel_sections
from foveal.recipes.result import EVALUATION, RESULT, SAMPLES
from foveal.recipes.runs import CONFIG, load_config, read_json
from foveal.recipes.tasks import CAPTION_TASKS, CLASSIFIERS
from foveal.training.metrics import read_metrics

REPORT, PICTURES = "report.html", "pictures"


def write_run_report(folder: Path) -> Path | None:
    """Write the report of a run; None, with a warning, where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        warnings.warn(
            "no report.html, since matplotlib is missing: pip install 'foveal[draw]'",
            stacklevel=2,
        )
        return None
    from foveal.draw.report import write_report

    config = load_config(folder)
    (folder / PICTURES).mkdir(exist_ok=True)
    kinds = {RESULT: dict, EVALUATION: dict, SAMPLES: list}
    found = {name: read_json(folder / name) for name in kinds}
    for name, kind in kinds.items():
        if not isinstance(found[name], kind | None):
            raise ValueError(f"{folder / name} is not as foveal writes it; delete it.")
    result, evaluation, samples = found.values()
    try:
        headline = _headline(result or {}, evaluation)
        sections = list(_sections(folder, config, result or {}, evaluation, samples or []))
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{RESULT}, {EVALUATION} or {SAMPLES} in {folder} is not as foveal writes it "
            f"({error!r}); delete the damaged one."
        ) from error
    return write_report(
        folder / REPORT,
        title=f"{Path(config.recipe).stem}: {config.model['name']}",
        subtitle=f"foveal run {folder.name}, trained on {config.data.path}",
        headline=headline,
        sections=sections,
    )


def pictures_of(folder: Path) -> list[Path]:
    """The pictures that belong to a run's report."""
    return sorted((folder / PICTURES).glob("*.png"))


def _headline(result: dict[str, Any], evaluation: dict[str, Any] | None) -> dict[str, str]:
    score = evaluation if evaluation and not _is_old(evaluation, result) else result
    cards = {}
    if "bits_per_byte" in score:
        cards["bits per byte, held out"] = f"{score['bits_per_byte']:.3f}"
    if "bits_per_dim" in score:
        cards["bits per dimension, held out"] = f"{score['bits_per_dim']:.3f}"
    for name, label in (("accuracy", "top-1"), ("balanced_accuracy", "mean over classes")):
        if name in score:
            cards[f"{label} accuracy, held out"] = f"{score[name]:.1%}"
    cards |= caption_cards(score)
    if result:
        cards["steps"] = f"{result['steps']:,}"
        cards["minutes of training"] = f"{result['seconds'] / 60:.1f}"
        cards["parameters"] = result["facts"]["parameters"]
    return cards


def _is_old(evaluation: dict[str, Any], result: dict[str, Any]) -> bool:
    """Whether training went on after what was scored, and has scored itself since."""
    found = re.fullmatch(r"step-(\d+)", str(evaluation.get("checkpoint")))
    return bool(result and found) and int(found[1]) < result["steps"]  # type: ignore[index]


def _sections(
    folder: Path,
    config: RunConfig,
    result: dict[str, Any],
    evaluation: dict[str, Any] | None,
    samples: list[dict[str, Any]],
) -> Iterator[Any]:
    """The parts of the report for which there is something to show."""
    from foveal.draw.report import Section

    entries = read_metrics(folder)
    if config.task in CLASSIFIERS:
        yield from image_sections(folder / PICTURES, entries, evaluation)
    elif config.task in CAPTION_TASKS:
        yield from caption_sections(folder / PICTURES, entries, evaluation)
    elif any("loss" in entry for entry in entries):
        picture = _draw_training(entries, folder / PICTURES / "training.png", config.task)
        title = f"Loss on training and held-out {config.task}"
        yield Section("Training", pictures=[(title, picture)])
    if config.task == "pixels":
        yield from pixel_sections(folder / PICTURES, evaluation)
    if evaluation and config.task == "bytes":
        yield _evaluation_section(evaluation, folder / PICTURES / "scores.png")
    if samples:
        yield Section(
            "Samples",
            note="What the model writes after the prompt, which is set in bold.",
            samples=[(s["prompt"], s["text"]) for s in reversed(samples)],
        )
    drawn = list(_draw_patterns(result, folder / PICTURES))
    if drawn:
        yield Section(
            "Patterns", note="Rows are queries, columns are the keys they read.", pictures=drawn
        )
    if result:
        yield Section("Data and model", rows=result["facts"])
        yield Section("Machine and versions", rows=result["machine"])
    yield Section("Configuration", code=json.dumps(read_json(folder / CONFIG), indent=2))


def _draw_training(entries: list[dict[str, float]], path: Path, task: str) -> Path:
    from foveal.draw.curves import Curve, draw_curves, smooth

    score = "bits_per_dim" if task == "pixels" else "bits_per_byte"
    steps = [entry["step"] for entry in entries if "loss" in entry]
    bits = [entry["loss"] / math.log(2) for entry in entries if "loss" in entry]
    curves = [Curve("", steps, bits, "faint"), Curve("training", steps, smooth(bits))]
    held_out = [
        (entry["step"], entry[key])
        for entry in entries
        for key in (f"valid/{score}", f"final/{score}")
        if key in entry
    ]
    if held_out:
        x, y = zip(*held_out, strict=True)
        curves.append(Curve("held out", x, y, "points"))
    return draw_curves(curves, path, xlabel="step", ylabel=score.replace("_", " "))


def _evaluation_section(evaluation: dict[str, Any], path: Path) -> Any:
    from foveal.draw.curves import draw_bars
    from foveal.draw.report import Section

    values = {
        "this model": evaluation["bits_per_byte"],
        "gzip -9": evaluation["gzip"],
        "xz -9e": evaluation["xz"],
    }
    rows = {
        "bits per byte": ", ".join(f"{name} {value:.3f}" for name, value in values.items()),
        "scored": f"{evaluation['bytes']:,} bytes, each but the first once",
        "data": f"{evaluation['data']}, checksum {evaluation['checksum']}",
        "windows": describe_windows(evaluation["context"], evaluation["stride"]),
        "checkpoint": evaluation["checkpoint"],
    }
    picture = draw_bars(values, path, xlabel="bits per byte (less is better)")
    return Section("Held-out score", pictures=[("The same bytes, three ways", picture)], rows=rows)


def describe_windows(context: int, stride: int) -> str:
    """How bytes were scored, in words; a score means little without it."""
    if stride == context:
        return f"{context} bytes, each window from a cold start"
    return (
        f"{context} bytes, sliding by {stride}: each byte sees {context - stride} or more before"
    )


def _draw_patterns(result: dict[str, Any], folder: Path) -> Iterator[tuple[str, Path]]:
    """A picture of each pattern that the trained model used."""
    from foveal.draw.patterns import draw_pattern

    for number, table in enumerate(result.get("patterns", ())):
        pattern = from_config(table)
        path = folder / f"pattern-{number}.png"
        yield f"{pattern}", draw_pattern(pattern, None, path)
