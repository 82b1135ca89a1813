"""The model card: a README.md that says what a model is, and its metadata in YAML."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

import torch
from torch import nn

from foveal.common.packages import need
from foveal.common.words import shorten
from foveal.patterns import Pattern
from foveal.version import __version__

MARK = "<!-- written by foveal; without this line it is yours, and is never replaced -->"
"""In every card that we have written."""

_LOAD = 'import foveal  # pip install "foveal[hub]"\n\nmodel = foveal.load_model("{}")'
_MOST = 300
_MOST_PATTERNS = 4


@dataclass(frozen=True, kw_only=True)
class Card:
    """What a card tells besides what the model knows of itself.

    Attributes:
        description: what the model is for; Markdown.
        data: what it was trained on, in words.
        datasets: the data sets of the Hub among that, as "user/name".
        scores: name -> number.
        scored_on: the data of the scores, in words.
        command: the command that trained it.
        settings: of the training, as JSON can hold them.
        license: as the Hub calls it, such as "mit" or "apache-2.0".
        language: of its texts, as ISO code.
        tags: words to find it by.
        pipeline_tag: what the Hub calls its use; the model's own unless given.
        facts: further label -> text.
    """

    description: str = ""
    data: str = ""
    datasets: Sequence[str] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    scored_on: str = ""
    command: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    license: str | None = None
    language: str | Sequence[str] | None = None
    tags: Sequence[str] = ()
    pipeline_tag: str | None = None
    facts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for one in fields(self):
            if getattr(self, one.name) is None and one.default is not None:  # nothing is said
                empty = {} if one.default is MISSING else one.default
                object.__setattr__(self, one.name, empty)
        for name in ("datasets", "tags"):
            given = getattr(self, name)
            listed = (given,) if isinstance(given, str) else tuple(given)
            object.__setattr__(self, name, tuple(str(one) for one in listed))
        for name in ("scores", "settings", "facts"):
            if not isinstance(getattr(self, name), Mapping):
                got = shorten(repr(getattr(self, name)), 60)
                raise ValueError(f"{name} must be a mapping of names to values, got {name}={got}.")
        for name, value in self.scores.items():
            if not _is_number(value):
                got = shorten(repr(value), 60)
                raise ValueError(f"scores must be finite numbers, got {got} for {name!r}.")


def _is_number(value: Any) -> bool:
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        return False
    return math.isfinite(float(value))


def write_card(model: Any, repo: str, card: Card) -> str:
    """The text of README.md.

    Args:
        model: a `foveal.models.Model`.
        repo: "user/name", for the lines that load it.
        card: what else is known.
    """
    parts = [
        f"---\n{_yaml(_metadata(model, repo, card))}---\n{MARK}",
        f"# {repo.rpartition('/')[2]}",
        f"A `{type(model).__name__}` of [foveal](https://foveal.readthedocs.io), structured "
        "attention for PyTorch.",
        card.description.strip(),
        "## Use",
        _fence(_LOAD.format(repo)),
        "## Model",
        _table({**_of_model(model), **card.facts}),
    ]
    parts += ["## Data", _escape(card.data)] if card.data else []
    if card.scores:
        where = f"On {_escape(card.scored_on)}." if card.scored_on else ""
        shown = {name.replace("_", " "): f"{float(x):.4g}" for name, x in card.scores.items()}
        parts += ["## Scores", where, _table(shown)]
    if card.command:
        parts += ["## Training", "It was trained by", _fence(card.command, "sh")]
    if card.settings:
        text = json.dumps(_clean(card.settings), indent=2, ensure_ascii=False, default=str)
        parts += ["All of its settings:", _fence(text, "json")]
    licensed = f"`{_word(card.license)}`" if card.license else "Its author has named none."
    parts += ["## Licence", licensed]
    return _clean("\n\n".join(part for part in parts if part) + "\n")


def _metadata(model: Any, repo: str, card: Card) -> dict[str, Any]:
    """What the Hub reads, every text on one line."""
    tags = dict.fromkeys(["foveal", model.family, *card.tags])
    found = {
        "library_name": "foveal",
        "pipeline_tag": card.pipeline_tag or _pipeline_tag(model),
        "license": card.license,
        "language": card.language,
        "datasets": list(card.datasets),
        "tags": list(tags),
    }
    if card.scores:
        found["metrics"] = list(card.scores)
        found["model-index"] = [
            {"name": repo.rpartition("/")[2], "results": [_result(found, card)]}
        ]
    return {name: _one_line(value) for name, value in found.items() if value}


def _result(found: Mapping[str, Any], card: Card) -> dict[str, Any]:
    """An entry of the model index; the Hub wants a task and a data set of each."""
    data = card.scored_on or card.data or "unnamed data"
    kind = card.datasets[0] if card.datasets else "other"
    metrics = [
        {"type": name, "name": name.replace("_", " "), "value": _plain_number(value)}
        for name, value in card.scores.items()
    ]
    task = found["pipeline_tag"] or "other"
    return {"task": {"type": task}, "dataset": {"type": kind, "name": data}, "metrics": metrics}


def _plain_number(value: Any) -> int | float:
    return value if type(value) is int else float(value)


def _pipeline_tag(model: Any) -> str | None:
    """Of a model that can be called so: an encoder of the same class generates nothing."""
    tag: str | None = getattr(model, "pipeline_tag", None)
    return None if tag == "text-generation" and not getattr(model, "is_causal", True) else tag


def _of_model(model: nn.Module) -> dict[str, str]:
    """What a model knows of itself."""
    dtypes = {p.dtype for p in model.parameters()} or {torch.get_default_dtype()}
    patterns: dict[str, None] = {}
    for module in model.modules():
        pattern = getattr(module, "pattern", None)
        if isinstance(pattern, Pattern):
            patterns[shorten(str(pattern), 120)] = None
    shown = list(patterns)[:_MOST_PATTERNS] + ["..."] * (len(patterns) > _MOST_PATTERNS)
    rows = {
        "family": str(model.family),
        "parameters": f"{sum(p.numel() for p in model.parameters()):,}",
        "dtype": ", ".join(sorted(str(one).removeprefix("torch.") for one in dtypes)),
        "attention": ", ".join(shown),
        "written by": f"foveal {__version__}",
    }
    return {label: text for label, text in rows.items() if text}


# -- text that can hold anything ------------------------------------------------------------------


def _yaml(values: Mapping[str, Any]) -> str:
    """YAML that reads back as it was, whatever the texts hold."""
    dump = need("huggingface_hub.utils", "a model card").yaml_dump
    return str(dump(values, sort_keys=False))


def _one_line(value: Any) -> Any:
    """The same with every text cut, on one line, of printable characters."""
    if isinstance(value, Mapping):
        return {_word(name): _one_line(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_one_line(one) for one in value]
    return _word(value) if isinstance(value, str) else value


def _word(text: Any) -> str:
    return shorten(_clean(str(text)), _MOST)


def _clean(value: Any) -> Any:
    """The same without what UTF-8 cannot write: halves of characters, as odd file names have."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, Mapping):
        return {_clean(str(name)): _clean(one) for name, one in value.items()}
    return [_clean(one) for one in value] if isinstance(value, list | tuple) else value


def _escape(text: Any) -> str:
    """A text on one line that Markdown and tables leave as it is."""
    line = _word(text)
    for sign in "\\`*_[]<>|#":
        line = line.replace(sign, "\\" + sign)
    return line


def _table(rows: Mapping[str, str]) -> str:
    lines = [f"| {_escape(label)} | {_escape(text)} |" for label, text in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _fence(text: str, language: str = "python") -> str:
    """Code, in a fence longer than any in it."""
    marks = "```"
    while marks in text:
        marks += "`"
    return f"{marks}{language}\n{text.strip()}\n{marks}"
