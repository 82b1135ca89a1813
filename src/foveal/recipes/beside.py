"""A run's model beside a program that was exported from it: the same inputs, and what differs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foveal.common import html
from foveal.export.check import gaps
from foveal.export.files import digest
from foveal.export.opened import OpenedProgram, open_program
from foveal.generation import Recompute, Sampler, generate
from foveal.models.base import Model


class Exported(nn.Module):
    """A program in the place of a model: on the CPU, without weights of its own to be trained.

    Attributes:
        program: as it was opened.
    """

    def __init__(self, program: OpenedProgram) -> None:
        super().__init__()
        self.program = program

    def forward(self, *inputs: Tensor) -> Any:
        """As of the model that was exported."""
        return self.program(*inputs)

    def continued(self, prompt: Tensor, n: int, sampler: Sampler) -> Tensor:
        """Prompts (batch, length) continued by n tokens: (batch, length + n)."""
        return generate(Recompute(self.logits), prompt, n, sampler=sampler)[0]

    def logits(self, tokens: Tensor) -> Tensor:
        """Logits of tokens (batch, length), filled up to the least length that it takes: what
        follows a token does not change its logits."""
        least, _ = self.program.size("length")
        missing = max(0, least - tokens.shape[1])
        return self(nn.functional.pad(tokens, (0, missing)))[:, : tokens.shape[1]]


@dataclass(frozen=True)
class Continuations:
    """What a model and its program wrote.

    Attributes:
        prompt, model, exported: the given and the new parts.
        tokens: how many each wrote; equal: how many are the same before they part.
        difference, largest: of the logits of all positions of what the model wrote, and the
            largest logit.
        margin: by how much the model preferred its own token where they part.
        same_weights: whether the program was exported from these very weights.
    """

    prompt: str
    model: str
    exported: str
    tokens: int
    equal: int
    difference: float
    largest: float
    margin: float | None
    same_weights: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"model     {self.prompt}{self.model}", f"exported  {self.prompt}{self.exported}"]
        return "\n".join([*lines, "", *self._told()])

    def _repr_html_(self) -> str:
        """What a notebook shows: both texts, and how near they are."""
        rows = [
            (name, f"{self.prompt}{text}")
            for name, text in (("model", self.model), ("exported", self.exported))
        ]
        return html.table(rows, title="model and program", note="\n".join(self._told()))

    def _told(self) -> list[str]:
        """Where they part, and by how much."""
        told = f"all {self.tokens} tokens are the same"
        if self.equal < self.tokens:
            told = (
                f"{self.equal} of {self.tokens} tokens are the same; there the model preferred "
                f"its own by {self.margin:.1e}"
            )
        near = difference_in_words(self.difference, self.largest)
        return [told, near, *([] if self.same_weights else [OTHER_WEIGHTS])]


OTHER_WEIGHTS = "the program was exported from other weights than these, perhaps an earlier step"


def difference_in_words(difference: float, largest: float) -> str:
    """How near the logits are."""
    return f"the logits differ by {difference:.1e} at most, of logits up to {largest:.3g}"


def open_beside(path: str | Path, model: Any) -> tuple[Exported, bool]:
    """A program of a model, and whether it was exported from these very weights.

    Raises:
        ValueError: there is none, or it is that of another model.
        ModuleNotFoundError: onnxruntime is missing.
    """
    if not isinstance(model, Model):
        raise ValueError(
            f"only a model of foveal has such programs, and the run's is a {type(model).__name__}."
        )
    config = json.loads(json.dumps(model.settings.to_json()))
    own = {"family": model.family, "config": config}

    def check(about: Mapping[str, Any]) -> None:
        for key, value in own.items():
            if about.get(key) != value:
                raise ValueError(
                    f"{str(path)!r} was exported from another model: "
                    f"{_other(about.get(key), value)}; name the program of this run."
                )

    program = open_program(path, check)
    return Exported(program), program.about.get("weights") == digest(model)


def _other(theirs: Any, ours: Any) -> str:
    """What differs: a family, or the first setting that does."""
    if not (isinstance(theirs, dict) and isinstance(ours, dict)):
        return f"it is a {theirs!r:.40}, and the run's a {ours!r}"
    for name in sorted(theirs.keys() | ours.keys()):
        if theirs.get(name) != ours.get(name):
            return f"its {name} is {theirs.get(name)!r:.60}, and the run's {ours.get(name)!r:.60}"
    return "of other settings"


def differ(found: Tensor, wanted: Tensor) -> tuple[float, float]:
    """The largest difference of two results of one shape, and the largest number of `wanted`."""
    size = wanted.abs().masked_fill(~wanted.isfinite(), 0.0)
    return float(gaps(found, wanted).max()), float(size.max())


class _Here:
    """A model as a decoder whose logits come to the CPU, where programs draw their tokens too."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def prefill(self, tokens: Tensor, max_length: int | None = None) -> tuple[Tensor, Any]:
        """(batch, length) -> logits (batch, num_tokens), state."""
        logits, state = self.model.prefill(tokens.to(self.model.device), max_length)
        return logits.cpu(), state

    def step(self, token: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """(batch,) -> logits (batch, num_tokens), state."""
        logits, state = self.model.step(token.to(self.model.device), cache)
        return logits.cpu(), state


@torch.no_grad()
def continue_both(
    model: Any, exported: Exported, prompt: Tensor, n: int, sampler: Sampler
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """A prompt (1, length) continued by a model and by its program, and how they differ.

    Returns:
        The tokens (1, length + n) of each, and the fields of `Continuations` that say so.
    """
    ours, _ = generate(_Here(model), prompt, n, sampler=sampler)
    theirs = exported.continued(prompt, n, sampler)
    logits, length = model(ours.to(model.device)).cpu(), prompt.shape[1]
    difference, largest = differ(exported.logits(ours), logits)
    alike = (ours == theirs)[0, length:].int().cumprod(0)
    equal, margin = int(alike.sum()), None
    if equal < n:
        at = length + equal
        said = logits[0, at - 1]
        margin = float(said[ours[0, at]] - said[theirs[0, at]])
    told = {"tokens": n, "equal": equal, "margin": margin}
    return ours, theirs, {**told, "difference": difference, "largest": largest}
