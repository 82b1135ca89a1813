"""What the commands do: train a recipe, evaluate a run, let it write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from foveal.common.files import remove_folder
from foveal.recipes.assets import keep_assets
from foveal.recipes.claim import ClaimedFolder
from foveal.recipes.config import absolute_paths
from foveal.recipes.kind import KindTask, Run
from foveal.recipes.report import PICTURES, write_result, write_run_report
from foveal.recipes.runs import MODEL, open_run
from foveal.recipes.score import Score, evaluate
from foveal.recipes.settings import RunConfig
from foveal.training.batch_norms import share_over_processes
from foveal.training.checkpoints import export_model
from foveal.training.config import check_training
from foveal.training.layout import Layout
from foveal.training.machine import keep_freed_memory
from foveal.training.processes import from_first, together
from foveal.training.progress import waiting
from foveal.training.trainer import Outcome, Trainer, make_accelerator

__all__ = ["Score", "compare", "evaluate", "generate", "train"]

COMPARED = 64
"""Tokens that `compare` writes unless told: the program reads everything again for each."""


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
    place = (accelerator.process_index, accelerator.num_processes)
    layout = together(
        accelerator, lambda: Layout(*place, config.parallel, accelerator.device.type)
    )
    with ClaimedFolder(config, output, resume, accelerator) as claimed:
        with waiting("reading", enabled=accelerator.is_main_process):
            task = together(accelerator, lambda: KindTask(config, layout))
        if task.has_stages:
            if claimed.last is None:  # a run that goes on has been checked, and has its stages
                together(accelerator, lambda: task.kind.check_stages(task))
            task.prepare(claimed.claim(), train)
        share_over_processes(task.model, layout)
        trainer = Trainer(
            task,
            config.optimizer,
            config.training,
            claimed.path,
            settings=config.to_dict(),
            accelerator=accelerator,
            title=Path(config.recipe).stem,
            shard=config.parallel.shard,
        )
        together(accelerator, trainer.rehearse)
        trainer.folder, trainer.before_saving = claimed.claim(), claimed.check
        going_on = claimed.last is not None
        from_first(
            accelerator,
            lambda: keep_assets(task.save_assets, claimed.path, has_weights=going_on),
        )
        if accelerator.device.type == "cpu":
            keep_freed_memory()
        try:
            outcome = trainer.fit(resume_from=claimed.last)
        finally:
            task.close()
        # the others do not wait for what the first has left to do: it may take long
        if accelerator.is_main_process:
            claimed.check()
            _conclude(claimed.path, task, trainer, outcome)
        return claimed.path, outcome


def _conclude(folder: Path, task: KindTask, trainer: Trainer, outcome: Outcome) -> None:
    """What a run ends with: the model, how the training went, and the report."""
    keep_model(task, trainer.weights.end(outcome.checkpoint), folder / MODEL)
    write_result(folder, task, outcome, trainer.accelerator.device)
    finish(folder, task)
    write_run_report(folder)


def keep_model(task: KindTask, whole: nn.Module | None, folder: Path) -> None:
    """Give a task the model whose weights were in parts, and users its file; None: they were not.

    Then the last checkpoint has it, and what is in the folder is of an earlier end.
    """
    if whole is None:
        remove_folder(folder)
    else:
        task.model = whole
        export_model(whole, folder)


def finish(folder: Path, task: KindTask) -> None:
    """Add what a run shows besides its results, once it has ended."""
    (folder / PICTURES).mkdir(exist_ok=True)
    task.kind.finish(task, folder)


def generate(
    run: Run | Path | str,
    prompt: str,
    length: int | None = None,
    *,
    device: str = "auto",
    **sampling: Any,
) -> Any:
    """Let a run's model write, and keep that in its folder.

    Args:
        prompt: what to go on from; see `Kind.generate` of its task.
        length: how much; as much as is usual for the task unless given.
        sampling: seed, temperature, top_k, top_p, min_p.

    Raises:
        ValueError: there is no such run, or its model writes nothing.
    """
    run = open_run(run)
    length = run.kind.length if length is None else length
    return run.kind.generate(run, prompt, length, device=device, **sampling)


def compare(
    run: Run | Path | str,
    program: str,
    prompt: str,
    length: int | None = None,
    *,
    device: str = "auto",
    **sampling: Any,
) -> Any:
    """Let a run's model and a program that was exported from it write; nothing is kept.

    Args:
        program: a file of `foveal export`.
        prompt: as of `generate`.
        length: tokens; 64 unless given.
        sampling: as of `generate`; greedy unless a temperature is given.

    Raises:
        ValueError: there is no such run or program, its model writes nothing, or the program is
            that of another one.
    """
    run = open_run(run)
    count = COMPARED if length is None else length
    return run.kind.compare(run, program, prompt, count, device=device, **sampling)
