"""What can be set about a training run, and strict reading of it from plain dictionaries."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from foveal.common.words import suggest

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW or Muon, with warm-up and cosine decay.

    Attributes:
        name: "adamw", or "muon" for the matrices inside the model and AdamW for the rest; a Muon
            step costs more and, in small models, needs fewer of them.
        learning_rate: the peak, reached after the warm-up.
        final_fraction: the learning rate at the end, as a fraction of the peak.
        warmup_steps: steps over which the learning rate rises linearly from zero; but no more
            than a twentieth of a time budget.
        weight_decay: applied to matrices only, never to biases, gains and other vectors.
        beta1, beta2, epsilon: AdamW's.
        momentum: Muon's.
        clip: largest norm of the gradient; 0 switches clipping off.
    """

    name: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    final_fraction: float = 0.05
    warmup_steps: int = 100
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-8
    momentum: float = 0.95
    clip: float = 1.0


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Budget, batches, and how often something else happens.

    Attributes:
        steps: stop after so many optimizer steps. Runs with only this budget resume bit for bit.
        time_budget: stop after so many seconds of training. With both, whichever comes first.
        batch_size: examples of an optimizer step, over all processes and micro-batches.
        accumulate: micro-batches that each process makes of its share of them.
        prefetch: batches that a thread reads ahead, which changes no bit of a run; 0 reads each
            when it is wanted. Unless given, 2 beside an accelerator and 0 on a CPU, where it would
            take its time from the training.
        seed: weights at the start, order of the data, dropout.
        precision: "auto" is bfloat16 where the hardware multiplies it natively, else float32;
            so is "bfloat16" on a processor that would only emulate it.
        device: "auto" is the accelerator that is there, or the CPU; else "cpu", "cuda", "cuda:1",
            "mps".
        log_every, evaluate_every, checkpoint_every: in steps; 0 means only at the end. With a
            time budget, evaluations that would take more than a tenth of the time are left out.
        checkpoint_seconds: also save when so many seconds have passed since the last time; 0
            means never.
        keep: checkpoints to keep.
        compile: run the model through torch.compile.
        activation_checkpointing: recompute each block in the backward pass in place of keeping
            what it made: less memory, about a third more time.
        loss_chunk: of language models, make the logits of so many tokens at a time, in the
            backward pass too, so that those of a long sequence need not fit; 0 makes all.
        trackers: who is told the numbers besides metrics.jsonl, by the names that Accelerate has
            for them: "tensorboard", "wandb", "mlflow", "trackio", ...; none for an empty list
            (on the command line, the bare option), and TensorBoard, where it is installed,
            unless given.
    """

    steps: int | None = None
    time_budget: float | None = None
    batch_size: int = 8
    accumulate: int = 1
    prefetch: int | None = None
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    log_every: int = 10
    evaluate_every: int = 500
    checkpoint_every: int = 500
    checkpoint_seconds: float = 0.0
    keep: int = 2
    compile: bool = False
    activation_checkpointing: bool = False
    loss_chunk: int = 0
    trackers: tuple[str, ...] | None = None


def check_training(training: TrainingConfig, optimizer: OptimizerConfig) -> None:
    """Raise ValueError for values that cannot make a run, ModuleNotFoundError for a tracker's."""
    if training.steps is None and training.time_budget is None:
        raise ValueError(
            "the training needs a budget: set training.steps or training.time_budget (seconds)."
        )
    for name, least in _LEAST_TRAINING.items():
        _check_at_least("training." + name, getattr(training, name), least)
    for name, least in _LEAST_OPTIMIZER.items():
        _check_at_least("optimizer." + name, getattr(optimizer, name), least)
    _check_more(training, optimizer)
    if training.trackers:
        from foveal.training.trackers import check_trackers  # which asks Accelerate

        check_trackers(training.trackers)


_LEAST_TRAINING = {
    "steps": 1,
    "batch_size": 1,
    "accumulate": 1,
    "prefetch": 0,
    "log_every": 1,
    "evaluate_every": 0,
    "checkpoint_every": 0,
    "checkpoint_seconds": 0,
    "keep": 1,
    "loss_chunk": 0,
    "seed": 0,
}
_LEAST_OPTIMIZER = {"learning_rate": 0, "warmup_steps": 0, "weight_decay": 0, "clip": 0}
_SHARES = {"final_fraction": 1.0, "beta1": 1.0, "beta2": 1.0, "momentum": 1.0}
_LARGEST = 2**63
_LARGEST_BATCH = 1_000_000


def _check_at_least(name: str, value: float | None, least: float) -> None:
    if value is not None and not (value >= least and value < _LARGEST):
        rule = f"at least {least}" if not value >= least else f"below {_LARGEST:.0e}"
        raise ValueError(f"{name} must be {rule}, got {show(value)}.")


def _check_more(training: TrainingConfig, optimizer: OptimizerConfig) -> None:
    """Rules of single settings."""
    budget = training.time_budget
    if budget is not None and not 0 < budget < _LARGEST:
        raise ValueError(
            f"training.time_budget must be a number of seconds above 0, got {show(budget)}."
        )
    if training.batch_size > _LARGEST_BATCH:
        raise ValueError(
            f"training.batch_size must be at most {_LARGEST_BATCH:,}, got "
            f"{show(training.batch_size)}."
        )
    for name, most in _SHARES.items():
        value = getattr(optimizer, name)
        if not 0 <= value <= most:
            raise ValueError(f"optimizer.{name} must be from 0 to {most:g}, got {show(value)}.")
    if not optimizer.epsilon > 0:
        raise ValueError(f"optimizer.epsilon must be above 0, got {show(optimizer.epsilon)}.")


def check_batch(training: TrainingConfig, num_examples: int) -> None:
    """Raise ValueError for a batch that would hold an example more than once."""
    if training.batch_size > num_examples:
        raise ValueError(
            "training.batch_size must be at most the number of training examples, "
            f"{num_examples:,}, got {training.batch_size:,}."
        )


def share_of_batch(training: TrainingConfig, processes: int) -> int:
    """Examples of one micro-batch of one process.

    Args:
        processes: those that see different examples.

    Raises:
        ValueError: the examples of a step cannot be shared out evenly.
    """
    parts = processes * training.accumulate
    share, left = divmod(training.batch_size, parts)
    if left:
        near = [size for size in (share * parts, (share + 1) * parts) if size]
        raise ValueError(
            f"training.batch_size must be a multiple of {parts}, as processes={processes} with "
            f"training.accumulate={training.accumulate} share the examples of a step evenly, got "
            f"training.batch_size={training.batch_size}; use {' or '.join(map(str, near))}."
        )
    return share


def show(value: Any) -> str:
    """A value as it was written, cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of thousands of digits, endless nesting
        text = f"an {type(value).__name__} too large to show"
    return text if len(text) <= 60 else text[:57] + "..."


def check_keys(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise ValueError for the first key of `given` that is not in `known`."""
    known = list(known)
    for key in given:
        if key not in known:
            raise ValueError(f"unknown key {key!r} in {where}; {suggest(key, known)}")


def from_dict(cls: type[ConfigT], values: Mapping[str, Any], where: str) -> ConfigT:
    """Build a flat config dataclass from a dictionary, strictly.

    Args:
        where: names the place in errors, such as "[training] of recipe bytes-hourglass".

    Raises:
        ValueError: an unknown key (with the nearest known one), a missing key, or a wrong type.
    """
    assert is_dataclass(cls)
    hints = typing.get_type_hints(cls)
    known = {field.name: field for field in fields(cls)}
    check_keys(values, known, where)
    for name, field in known.items():
        required = field.default is MISSING and field.default_factory is MISSING
        if required and name not in values:
            raise ValueError(f"the key {name!r} is missing in {where}.")
    converted = {name: _convert(value, hints[name], name, where) for name, value in values.items()}
    return typing.cast(ConfigT, cls(**converted))


def _convert(value: Any, hint: Any, name: str, where: str) -> Any:
    """Accept a value for a hint of int, float, bool, str, texts, Literal and unions of them."""
    options = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for option in options:
        if get_origin(option) is Literal:
            if any(type(value) is type(one) and value == one for one in get_args(option)):
                return value
        elif option in (int, float) and type(value) in (int, option):
            # what no machine counts to, and no number at all, are told below
            if abs(value) < _LARGEST:
                return option(value)
        elif option == _TEXTS and isinstance(value, list | tuple):
            if all(type(one) is str for one in value):
                return tuple(value)
        elif type(value) is option:
            return value
    raise ValueError(f"{name} in {where} must be {_describe(options)}, got {show(value)}.")


_TEXTS = tuple[str, ...]
_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    _TEXTS: "a list of texts",
}


def _describe(options: Iterable[Any]) -> str:
    words: list[str] = []
    for option in options:
        if get_origin(option) is Literal:
            words += map(repr, get_args(option))
        else:
            words.append("left out" if option is type(None) else _WORDS.get(option, str(option)))
    return " or ".join(words)
