"""What byte language models write, and what a run keeps of it for its report."""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from foveal.common.inputs import reason
from foveal.common.locks import locked
from foveal.data.text import decode, encode
from foveal.recipes.kind import Run
from foveal.recipes.report import SAMPLES, write_run_report
from foveal.recipes.runs import open_model, read_json, write_json
from foveal.recipes.settings import RunConfig

_MOST_WRITTEN = 1_000_000
_PROMPTS = ("def ", "class ", "import ")
_SAMPLE_BYTES = 320
_MAX_SAMPLES = 12
_SAMPLES_LOCK = f".{SAMPLES}.lock"


@dataclass(frozen=True)
class Continuation:
    """What a model wrote.

    Attributes:
        prompt, text: the given and the new part.
        tokens, seconds: how much of it, and how long it took.
    """

    prompt: str
    text: str
    tokens: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return asdict(self)

    def __str__(self) -> str:
        speed = self.tokens / max(self.seconds, 1e-9)
        pace = f"[{self.tokens} tokens in {self.seconds:.1f} s: {speed:,.0f} tokens/s]"
        return f"{self.prompt}{self.text}\n\n{pace}"


def write_on(
    run: Run, prompt: str, length: int, *, device: str = "auto", **sampling: Any
) -> Continuation:
    """Let a run's model continue a prompt and keep the text beside the run's samples.

    Args:
        prompt: what to go on from; an empty one stands for the beginning of a line. Of a prompt
            that is longer than what the model looks at, it sees the end.
        length: bytes to write.
    """
    model, _ = open_model(run, device)
    longest = _max_length(model, run.config)
    written = continue_text(model, prompt, length, max_seq_len=longest, **sampling)
    try:
        add_sample(run.folder, written)
        write_run_report(run.folder)
    except OSError as error:
        warnings.warn(f"the text was not kept in {run.folder}: {reason(error)}", stacklevel=2)
    return written


def keep_first_samples(folder: Path, model: Any, config: RunConfig) -> None:
    """Write a few samples of a run that has ended, if it has none."""
    if (folder / SAMPLES).exists():
        return
    longest = _max_length(model, config)
    for number, prompt in enumerate(_PROMPTS):
        written = continue_text(
            model, prompt, _SAMPLE_BYTES, max_seq_len=longest, seed=number, temperature=0.7
        )
        add_sample(folder, written)


@torch.no_grad()
def continue_text(
    model: Any,
    prompt: str,
    length: int,
    *,
    max_seq_len: int,
    seed: int | None = None,
    **sampling: Any,
) -> Continuation:
    """Let a model go on writing, beyond its maximum too: it then keeps the last half in view.

    Args:
        prompt: what to go on from; an empty one stands for the beginning of a line.
        length: bytes to write.
        max_seq_len: most tokens the model can look at; of a longer prompt it sees the end.
        sampling: temperature, top_k, top_p, min_p.

    Raises:
        ValueError: a length that nobody waits for, or nonsense among the sampling options.
    """
    given = encode(prompt) or encode("\n")
    if not 1 <= length <= _MOST_WRITTEN:
        raise ValueError(
            f"length must be at least 1 and at most {_MOST_WRITTEN:,}, got {length=}."
        )
    if max_seq_len < 2:
        raise ValueError(f"the model must look at 2 tokens or more to write, got {max_seq_len=}.")
    device = next(model.parameters()).device
    started, tokens, chunk = time.perf_counter(), list(given), 0
    while len(tokens) < len(given) + length:
        # a full window is cut to its last half, so that a cached pass can run on for a while
        view = tokens if len(tokens) < max_seq_len else tokens[-(max_seq_len // 2) :]
        count = min(max_seq_len - len(view), len(given) + length - len(tokens))
        start = torch.tensor([view], device=device)
        chunk_seed = None if seed is None else seed + chunk
        written = model.generate(start, count, seed=chunk_seed, **sampling)
        tokens += written[0, len(view) :].tolist()
        chunk += 1
    seconds = time.perf_counter() - started
    return Continuation(decode(encode(prompt)), decode(tokens[len(given) :]), length, seconds)


def add_sample(folder: Path, written: Continuation) -> None:
    """Keep a continuation for the report; the oldest go when there are many."""
    with locked(folder / _SAMPLES_LOCK):  # two may write at once
        samples = read_json(folder / SAMPLES) or []
        if not isinstance(samples, list):
            raise ValueError(f"{folder / SAMPLES} must hold a list; delete it.")
        samples.append(written.to_dict())
        write_json(folder / SAMPLES, samples[-_MAX_SAMPLES:])


def _max_length(model: Any, config: RunConfig) -> int:
    """The most tokens that a model looks at: its own word, or the training context."""
    return int(getattr(model, "max_seq_len", config.data.context))
