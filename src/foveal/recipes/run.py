"""What the commands do: train a recipe, evaluate a run, let it write."""

from __future__ import annotations

import dataclasses
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foveal.common.checks import check_sizes
from foveal.common.inputs import reading, reason
from foveal.common.locks import locked
from foveal.data.text import text_to_score
from foveal.recipes.assets import keep_assets
from foveal.recipes.bytes import ByteTask, Continuation, continue_text, score_windows
from foveal.recipes.claim import ClaimedFolder
from foveal.recipes.config import RunConfig
from foveal.recipes.paths import absolute_paths
from foveal.recipes.report import write_run_report
from foveal.recipes.result import SAMPLES, write_result
from foveal.recipes.runs import (
    load_config,
    read_json,
    write_json,
)
from foveal.recipes.scoring import (
    MOST_BYTES,
    compressed_bits,
    keep_result,
    open_model,
    sample_bytes,
)
from foveal.recipes.tasks import finish, make_task, require_task
from foveal.training.config import check_batch, check_training
from foveal.training.machine import keep_freed_memory
from foveal.training.processes import from_first, together
from foveal.training.progress import showing
from foveal.training.trainer import Outcome, Trainer, make_accelerator

if TYPE_CHECKING:
    from accelerate import Accelerator

_PROMPTS = ("def ", "class ", "import ")
_SAMPLE_BYTES = 320
_MAX_SAMPLES = 12
_SAMPLES_LOCK = f".{SAMPLES}.lock"


def train(
    config: RunConfig, output: str | None = None, resume: bool = False
) -> tuple[Path, Outcome]:
    """Train a configuration in a run folder and end with its report.

    Returns:
        The run's folder, and how the training ended.

    Raises:
        ValueError: the configuration cannot make a run; nothing has been written then.
        Interrupted: Ctrl-C or SIGTERM; the state has been saved.
    """
    check_training(config.training, config.optimizer)
    config = absolute_paths(config)
    accelerator = make_accelerator(config.training)
    with ClaimedFolder(config, output, resume, accelerator) as claimed:
        task = together(accelerator, lambda: _make_task(config, accelerator))
        if hasattr(task, "prepare"):
            if claimed.last is None:  # a run that goes on has been checked, and has its stages
                together(accelerator, task.check)
            task.prepare(claimed.claim())
        trainer = _make_trainer(task, config, claimed.path, accelerator)
        together(accelerator, trainer.rehearse)
        trainer.folder, trainer.before_saving = claimed.claim(), claimed.check
        if hasattr(task, "save_assets"):
            going_on = claimed.last is not None
            from_first(
                accelerator,
                lambda: keep_assets(task.save_assets, claimed.path, has_weights=going_on),
            )
        if accelerator.device.type == "cpu":
            keep_freed_memory()
        outcome = trainer.fit(resume_from=claimed.last)
        # the others do not wait for what the first has left to do: it may take long
        if accelerator.is_main_process:
            claimed.check()
            write_result(claimed.path, task, outcome, accelerator.device)
            finish(claimed.path, task, config)
            write_run_report(claimed.path)
        return claimed.path, outcome


def _make_task(config: RunConfig, accelerator: Accelerator) -> Any:
    """The task of this process; ValueError if a batch would hold examples more than once."""
    task = make_task(config, accelerator.process_index, accelerator.num_processes)
    sampler = getattr(getattr(task, "stream", None), "sampler", None)
    if sampler is not None:  # else the task makes its stream later, and checks this by itself
        check_batch(config.training, sampler.num_items)
    return task


def _make_trainer(task: Any, config: RunConfig, folder: Path, accelerator: Accelerator) -> Trainer:
    return Trainer(
        task,
        config.optimizer,
        config.training,
        folder,
        settings=config.to_dict(),
        accelerator=accelerator,
        title=Path(config.recipe).stem,
    )


def finish_bytes(folder: Path, task: ByteTask, config: RunConfig) -> None:
    """Write a few samples of a run that has ended."""
    if (folder / SAMPLES).exists():
        return
    model = task.model.eval()
    for number, prompt in enumerate(_PROMPTS):
        written = continue_text(
            model,
            prompt,
            _SAMPLE_BYTES,
            max_seq_len=max_length(model, config),
            seed=number,
            temperature=0.7,
        )
        add_sample(folder, written)


@dataclass(frozen=True)
class Evaluation:
    """A score and what it must be read beside.

    Attributes:
        bits_per_byte: of the model, over `bytes` held-out bytes.
        gzip, xz: bits per byte of `gzip -9` and `xz -9e` on the same bytes.
        context, stride: see `foveal.data.text.scoring_windows`.
        data, checksum: what was scored.
        seconds: time that the scoring took.
        checkpoint: the weights that were scored.
    """

    bits_per_byte: float
    gzip: float
    xz: float
    bytes: int
    context: int
    stride: int
    data: str
    checksum: str
    seconds: float
    checkpoint: str


def evaluate(
    folder: Path,
    *,
    data: str | None = None,
    context: int | None = None,
    stride: int | None = None,
    max_bytes: int = MOST_BYTES,
    device: str = "auto",
) -> Evaluation:
    """Score a run on its held-out bytes, in float32, and compress the same bytes.

    Args:
        data: score other data: their test or validation part, or all of them.
        context: bytes per window; the training context unless told otherwise.
        stride: bytes newly scored by each window; the context unless told otherwise.
        max_bytes: score at most so many bytes, spread evenly over the data; 0 means all.
        device: see `foveal.training.machine.pick_device`.
    """
    config = load_config(folder)
    require_task(config, "bytes", "bits per byte")
    if max_bytes < 0 or max_bytes == 1:
        raise ValueError(f"max_bytes must be at least 2, or 0 for all, got {max_bytes=}.")
    context = config.data.context if context is None else context
    stride = context if stride is None else stride
    check_sizes(context=context, stride=stride)
    with showing("reading"), reading(f"data={config.data.path if data is None else data!r}"):
        corpus = sample_bytes(text_to_score(config.data, data), max_bytes)
    model, checkpoint = open_model(folder, config, device)
    _check_context(model, context)
    started = time.perf_counter()
    with showing("scoring"):
        bits, count = score_windows(model, corpus, context, stride=stride)["bits_per_byte"]
    seconds = time.perf_counter() - started
    with showing("compressing"):
        compressed = compressed_bits(corpus)
    result = Evaluation(
        bits_per_byte=bits / count,
        **compressed,
        bytes=len(corpus),
        context=context,
        stride=stride,
        data=corpus.name,
        checksum=corpus.checksum(),
        seconds=seconds,
        checkpoint=checkpoint,
    )
    keep_result(folder, asdict(result))
    return result


def _check_context(model: Any, context: int) -> None:
    """Raise ValueError for windows that the model cannot look at."""
    longest = getattr(model, "max_seq_len", None)
    if longest is not None and context > longest:
        raise ValueError(
            f"context must be at most {longest}, the most that the model of this run looks at, "
            f"got {context=}."
        )


def generate(
    folder: Path,
    prompt: str,
    length: int,
    *,
    seed: int | None = None,
    device: str = "auto",
    **sampling: Any,
) -> Continuation:
    """Let a run's model continue a prompt and keep the text beside the run's samples.

    Args:
        prompt: what to go on from; an empty one stands for the beginning of a line. Of a prompt
            that is longer than what the model looks at, it sees the end.
        length: bytes to write.
    """
    config = load_config(folder)
    require_task(config, "bytes", "generate")
    model, _ = open_model(folder, config, device)
    written = continue_text(
        model,
        prompt,
        length,
        max_seq_len=max_length(model, config),
        seed=seed,
        **sampling,
    )
    try:
        add_sample(folder, written)
        write_run_report(folder)
    except OSError as error:
        warnings.warn(f"the text was not kept in {folder}: {reason(error)}", stacklevel=2)
    return written


def add_sample(folder: Path, written: Continuation) -> None:
    """Keep a continuation for the report; the oldest go when there are many."""
    with locked(folder / _SAMPLES_LOCK):  # two may write at once
        samples = read_json(folder / SAMPLES) or []
        if not isinstance(samples, list):
            raise ValueError(f"{folder / SAMPLES} must hold a list; delete it.")
        samples.append(dataclasses.asdict(written))
        write_json(folder / SAMPLES, samples[-_MAX_SAMPLES:])


def max_length(model: Any, config: RunConfig) -> int:
    """The most tokens that a model looks at: its own word, or the training context."""
    return int(getattr(model, "max_seq_len", config.data.context))
