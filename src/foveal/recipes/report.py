"""What a run folder ends with: result.json, and report.html with its pictures."""

from __future__ import annotations

import importlib.util
import json
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from foveal.draw.patterns import draw_pattern
from foveal.draw.report import Section, write_report
from foveal.patterns import Pattern
from foveal.patterns.serialize import from_config, to_config
from foveal.recipes.charts import shown
from foveal.recipes.kind import Kind, find_kind
from foveal.recipes.runs import CONFIG, load_config, read_json, write_json
from foveal.training.machine import describe_machine
from foveal.training.metrics import read_metrics

if TYPE_CHECKING:
    from foveal.training.trainer import Outcome

REPORT, PICTURES = "report.html", "pictures"
RESULT, EVALUATION, SAMPLES = "result.json", "evaluation.json", "samples.json"
"""Files of a run folder: how training ended, the newest score, what a language model wrote."""


def write_run_report(folder: Path) -> Path | None:
    """Write the report of a run; None, with a warning, where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        warnings.warn(
            "no report.html, since matplotlib is missing: pip install 'foveal[draw]'",
            stacklevel=2,
        )
        return None
    config = load_config(folder)
    kind = find_kind(config.task)
    (folder / PICTURES).mkdir(exist_ok=True)
    forms = {RESULT: dict, EVALUATION: dict, SAMPLES: list}
    found = {name: read_json(folder / name) for name in forms}
    for name, form in forms.items():
        if not isinstance(found[name], form | None):
            raise ValueError(f"{folder / name} is not as foveal writes it; delete it.")
    result, score, samples = found.values()
    try:
        headline = _headline(kind, result or {}, score)
        sections = list(_sections(folder, kind, result or {}, score, samples or []))
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"the report of {folder} cannot be made ({error!r}); if {RESULT}, {EVALUATION} or "
            f"{SAMPLES} there is damaged, delete it."
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


def _headline(kind: Kind, result: dict[str, Any], score: dict[str, Any] | None) -> dict[str, str]:
    newest = newest_score(result, score)
    cards = shown(newest.get("scores", newest), kind.forms)
    if result:
        cards["steps"] = f"{result['steps']:,}"
        cards["minutes of training"] = f"{result['seconds'] / 60:.1f}"
        cards["parameters"] = result["facts"]["parameters"]
    return cards


def newest_score(result: dict[str, Any], score: dict[str, Any] | None) -> dict[str, Any]:
    """Of how training ended and what was scored, that which is of the newest weights."""
    return score if score and not _is_old(score, result) else result


def _is_old(evaluation: dict[str, Any], result: dict[str, Any]) -> bool:
    """Whether training went on after what was scored, and has scored itself since."""
    found = re.fullmatch(r"step-(\d+)", str(evaluation.get("checkpoint")))
    return bool(result and found) and int(found[1]) < result["steps"]  # type: ignore[index]


def _sections(
    folder: Path,
    kind: Kind,
    result: dict[str, Any],
    score: dict[str, Any] | None,
    samples: list[dict[str, Any]],
) -> Iterator[Section]:
    """The parts of the report for which there is something to show."""
    yield from kind.sections(folder / PICTURES, read_metrics(folder), score)
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


def _draw_patterns(result: dict[str, Any], folder: Path) -> Iterator[tuple[str, Path]]:
    """A picture of each pattern that the trained model used."""
    for number, table in enumerate(result.get("patterns", ())):
        pattern = from_config(table)
        path = folder / f"pattern-{number}.png"
        yield f"{pattern}", draw_pattern(pattern, None, path)


def write_result(folder: Path, task: Any, outcome: Outcome, device: torch.device) -> None:
    """Keep how a run ended, and on which machine.

    Args:
        task: a `foveal.training.task.Task` with `facts()`, label -> text.
    """
    result = {
        "steps": outcome.step,
        "seconds": round(outcome.elapsed, 1),
        **outcome.metrics,
        "patterns": patterns_of(task.model),
        "facts": task.facts(),
        "machine": describe_machine(device),
    }
    write_json(folder / RESULT, result)


def patterns_of(model: nn.Module) -> list[dict[str, Any]]:
    """The distinct patterns in a model's layers, as plain data, in order."""
    found: list[Pattern] = []
    for module in model.modules():
        pattern = getattr(module, "pattern", None)
        if isinstance(pattern, Pattern) and pattern not in found:
            found.append(pattern)
    return [to_config(pattern) for pattern in found]
