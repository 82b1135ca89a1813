"""The options of `foveal train`: every value of a recipe, and every keyword of its model."""

from __future__ import annotations

import ast
import dataclasses
import inspect
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import tyro

from foveal.cli.parsing import parse, plain
from foveal.recipes.build import model_arguments, model_class
from foveal.recipes.config import plain_table
from foveal.recipes.settings import SECTIONS, RunConfig

_SETTINGS = tuple(name for name in SECTIONS if name != "model")
"""Sections that are options as they are."""

_ALIASES = {
    "data": {"path": "--data", "shuffle_captions": "--shuffle-captions"},
    "training": {
        "steps": "--steps",
        "time_budget": "--time-budget",
        "seed": "--seed",
        "device": "--device",
    },
}
"""Short names, by section."""


def parse_overrides(
    config: RunConfig, arguments: Sequence[str]
) -> tuple[RunConfig, str | None, str]:
    """A recipe's configuration with what the command line changes about it.

    Returns:
        The configuration, the output folder or None, and what to resume: "never", "auto", or the
        folder of a run.
    """
    options: Any = parse(_train_options(config), arguments, f"train {config.recipe}", pairs=True)
    given = {key: _given(value) for key, value in vars(options.model).items()}
    # only what differs from the constructor's own default or was in the recipe
    model = {**config.model, **{k: v for k, v in given.items() if v is not _UNSET}}
    changed = dataclasses.replace(
        config,
        model=plain_table(model, "[model] of the command line"),
        **{
            name: type(getattr(config, name))(**vars(getattr(options, name))) for name in _SETTINGS
        },
    )
    return changed, options.output, options.resume


class _Unset:
    """Stands for a constructor's own default, which the recipe does not repeat."""

    def __repr__(self) -> str:
        return "the model's default"


_UNSET = _Unset()


def _given(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _train_options(config: RunConfig) -> type:
    """A dataclass of all options of `foveal train` for a recipe, with the recipe's values."""
    output = Annotated[str | None, tyro.conf.arg(help="run folder; a new one under runs/")]
    resume = Annotated[
        str,
        tyro.conf.arg(
            metavar="auto|FOLDER",
            help="auto: go on from the last whole checkpoint, if there is one; or a run's folder",
        ),
    ]
    model = _model_options(config)
    sections = {name: getattr(config, name) for name in _SETTINGS}
    fields: list[Any] = [
        ("output", output, dataclasses.field(default=None)),
        ("resume", resume, dataclasses.field(default="never")),
        ("model", model, dataclasses.field(default_factory=model)),
    ]
    for name, value in sections.items():
        made = plain(type(value), value, _ALIASES.get(name))
        fields.append((name, made, dataclasses.field(default_factory=made)))
    made = dataclasses.make_dataclass("TrainOptions", fields, kw_only=True)
    made.__doc__ = "Train this recipe; its own values are the defaults."
    return made


def _model_options(config: RunConfig) -> type:
    """The constructor's keywords of the recipe's model, each a Python literal or a pattern."""
    fields: list[Any] = []
    for name, default in model_arguments(model_class(config.model["name"])).items():
        shown = config.model.get(name, _UNSET)
        note = "" if default is inspect.Parameter.empty else f"the model's default: {default!r}"
        own = "" if shown is _UNSET else f"(default: {shown!r})"
        said = {"help": note, "help_behavior_hint": own}
        escaped: Any = {key: text.replace("%", "%%") for key, text in said.items()}
        hint = Annotated[Any, _LITERAL, tyro.conf.arg(**escaped)]
        # tyro wants defaults that do not change
        frozen = tuple(shown) if isinstance(shown, list) else shown
        fields.append((name, hint, dataclasses.field(default_factory=partial(_same, frozen))))
    made = dataclasses.make_dataclass("ModelOptions", fields, kw_only=True)
    made.__doc__ = f"Keywords of {config.model['name']}."
    return made


def _same(value: Any) -> Any:
    return value


def _literal(text: str) -> Any:
    """A Python literal, or else the text itself, such as a pattern."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


_LITERAL = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="VALUE",
    instance_from_str=lambda words: _literal(words[0]),
    is_instance=lambda value: True,
    str_from_instance=lambda value: [str(value)],
)
