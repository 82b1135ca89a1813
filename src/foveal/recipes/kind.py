"""What a task is. A new one is a subclass of `Kind`, in a folder beside its recipes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from foveal.common import html
from foveal.common.lazy import named
from foveal.common.words import suggest
from foveal.data.endless import EndlessSource, EndlessStream, stream_of
from foveal.data.opening import Reader
from foveal.data.prefetch import Prefetched
from foveal.data.sampling import sample
from foveal.data.stream import Source, Stream, VariedSource
from foveal.draw.report import Section
from foveal.recipes.assets import read_asset, write_asset
from foveal.recipes.build import build_model, model_class
from foveal.recipes.charts import (
    Entries,
    Forms,
    chart,
    heading,
    loss_curves,
    scored,
    shown,
)
from foveal.recipes.settings import RunConfig
from foveal.recipes.sharing import Parts, check_sharing
from foveal.training.config import check_batch, share_of_batch, show
from foveal.training.layout import Layout
from foveal.training.machine import pick_device
from foveal.training.task import Totals

TASKS = ("bytes", "images", "sequences", "pixels", "vae", "clip", "captions")
"""The tasks that recipes may name: each a folder with a `kind.py` that holds its KIND."""


@dataclass(frozen=True)
class Run:
    """A run folder, and the settings that it was trained with."""

    folder: Path
    config: RunConfig

    def _repr_html_(self) -> str:
        """What a notebook shows: what was trained, on what, and where it lies."""
        config = self.config
        rows = {"recipe": config.recipe, "task": config.task, "model": config.model.get("name")}
        return html.facts(rows | {"data": config.data.path}, title=f"run {self.folder}")

    @property
    def kind(self) -> Kind:
        """What its task is."""
        return find_kind(self.config.task)


class Kind:
    """One task: what it reads, builds, trains on, scores and shows.

    A recipe can name it: one of `TASKS`, or 'package.module:NAME' of one's own. `open`, `build`,
    `loss` and `evaluate` are all that a training needs; the rest has a meaning for many tasks, or
    does nothing.

    Attributes:
        data: dataclass of the recipe's [data]; its `path` names the data.
        reader: opens them, unless `open` and `open_to_score` do.
        unit: what the model consumes, in the plural, for the speed: "tokens", "images".
        score: the metric of `evaluate` that describes a run.
        things: what the examples are called, in the plural.
        limit: held-out examples that are scored at most, unless all are asked for; 0 is all.
        assets: what a run keeps because the model cannot be made without it; see `assets.FILES`.
        forms: label and format of the scores that a report opens with, by name.
        labels: label and format of all of them; `score` alone unless given.
        counted: the score that says how many examples it is of; called as these unless given.
        loss_label: what the curve of the training loss shows.
        sheets: captions of the pictures that `finish` and `generate` draw, by file name.
        options: of `foveal evaluate`, those that this task alone knows.
        length, temperature: of what `generate` writes, unless told otherwise.
        continues_text: whether the prompt of `generate` is a text, and no picture.
        shares: whether several processes may share each sequence; `loss` and `evaluate` then take
            this one's part, see `KindTask.parts`.
    """

    data: ClassVar[Any]
    reader: ClassVar[Reader[Any]]
    unit = "examples"
    score: str
    things = "examples"
    limit = 0
    assets: tuple[str, ...] = ()
    forms: ClassVar[Forms] = {}
    labels: ClassVar[Forms] = {}
    counted = ""
    loss_label = "loss"
    sheets: ClassVar[Mapping[str, str]] = {}
    options: tuple[str, ...] = ()
    length, temperature, continues_text = 400, 0.7, True
    shares = False

    # -- training

    def open(self, data: Any) -> tuple[Any, Any]:
        """What is trained on, and what is held out to score on meanwhile."""
        return self.reader.pair(data)

    def make_assets(self, train: Any, data: Any) -> dict[str, Any]:
        """What the model is made of besides the settings; of that name in the data by default."""
        return {name: getattr(train, name) for name in self.assets}

    def build(self, config: RunConfig, **assets: Any) -> nn.Module:
        """The model, its weights drawn from the run's seed."""
        return seeded_model(config)

    def source(self, task: KindTask) -> Source | VariedSource | EndlessSource:
        """The examples that are dealt while training."""
        source: Source | VariedSource | EndlessSource = task.train
        return source

    def units(self, task: KindTask) -> int:
        """Units in one example."""
        return 1

    def loss(self, task: KindTask, model: nn.Module, batch: Any) -> Tensor:
        """Scalar loss of a batch."""
        raise NotImplementedError

    def weight(self, task: KindTask, batch: Any) -> float | None:
        """How many terms the loss of a batch is the mean of; None where it is always as many."""
        return None

    def evaluate(self, task: KindTask, *, quick: bool, rank: int, world_size: int) -> Totals:
        """Sums and counts over this process's share of the held-out data."""
        raise NotImplementedError

    def most(self, data: Any) -> int:
        """The `limit`, where the settings say more."""
        return self.limit

    def facts(self, task: KindTask) -> dict[str, str]:
        """What a report should say about data and model besides their names and sizes."""
        return {}

    def check_stages(self, task: KindTask) -> None:
        """Find what is wrong with the models that a run needs first, before they are trained."""

    def prepare(self, task: KindTask, folder: Path, train: Callable[..., Any]) -> dict[str, Any]:
        """Find or train them, in the folder of the run; further assets of its model.

        Args:
            train: `foveal.recipes.run.train`.
        """
        return {}

    def finish(self, task: KindTask, folder: Path) -> None:
        """Add samples or pictures to the folder of a run that has ended."""

    # -- a run that is there

    def read_assets(self, folder: Path) -> dict[str, Any]:
        """What `make_assets` and `prepare` gave, as a run's folder keeps it.

        Raises:
            ValueError: it lacks something, or that is damaged.
        """
        return {name: read_asset(name, folder) for name in self.assets}

    def open_to_score(self, run: Run, data: str | None) -> Any:
        """The run's own held-out examples, or others: a set with `subset`, name and checksum."""
        classes = read_asset("classes", run.folder) if "classes" in self.assets else None
        return self.reader.to_score(run.config.data, data, classes)

    def to_score(self, run: Run, data: str | None, full: bool, **options: Any) -> Any:
        """What `foveal evaluate` scores: all of `open_to_score`, or a sample.

        Args:
            options: of `self.options`.
        """
        most = 0 if full else self.most(run.config.data)
        return sample(self.open_to_score(run, data), most, self.things)

    def measure(self, run: Run, model: Any, found: Any, **options: Any) -> dict[str, Any]:
        """The scores of a model on what `to_score` found, as JSON can hold them."""
        raise NotImplementedError

    def beside(self, found: Any) -> dict[str, Any]:
        """Further scores of the same examples, without the model."""
        return {}

    def rows(self, score: Mapping[str, Any]) -> dict[str, str]:
        """The scores of a run as label -> text."""
        forms = self.labels or {self.score: (self.score, "{:.4g}")}
        return shown(score.get("scores", score), forms)

    def table(self, score: Mapping[str, Any], folder: Path) -> list[str]:
        """The lines that `foveal evaluate` prints about a score."""
        rows = self.rows(score)
        width = max(map(len, rows))
        lines = heading(score, score[self.counted or self.things], self.things)
        return lines + [f"{label:<{width}}  {value}" for label, value in rows.items()]

    def charts(self, pictures: Path, entries: Entries) -> list[tuple[str, Path]]:
        """Curves of a training, each with its title."""
        return chart(
            "Training loss", loss_curves(entries), pictures / "training.png", self.loss_label
        )

    def score_section(self, pictures: Path, score: Mapping[str, Any]) -> Section:
        """The part of a report about a score."""
        rows = self.rows(score) | scored(score, score[self.counted or self.things], self.things)
        return Section("Held-out score", rows=rows)

    def sections(
        self, pictures: Path, entries: Entries, score: Mapping[str, Any] | None
    ) -> Iterator[Section]:
        """What a report shows besides patterns, facts and settings.

        Args:
            pictures: the folder for pictures.
            entries: of metrics.jsonl.
            score: of evaluation.json, if the run has been scored.
        """
        drawn = [(title, pictures / name) for name, title in self.sheets.items()]
        drawn = [(title, path) for title, path in drawn if path.exists()]
        if drawn:
            yield Section("Pictures", pictures=drawn)
        if charts := self.charts(pictures, entries):
            yield Section("Training", pictures=charts)
        if score:
            yield self.score_section(pictures, score)

    def generate(self, run: Run, prompt: str, length: int, *, device: str, **sampling: Any) -> Any:
        """What the model writes after a prompt; has `to_dict()`, and is text for people."""
        raise refusal(run.config, "generate", "bytes")

    def compare(
        self, run: Run, program: str, prompt: str, length: int, *, device: str, **sampling: Any
    ) -> Any:
        """What the model writes beside a program that was exported from it, likewise."""
        raise refusal(run.config, "generate", "bytes")


class KindTask:
    """The `foveal.training.task.Task` of a recipe, of whatever kind.

    Making it writes nothing, and finds every fault of the settings but those of models that have
    to be trained first.

    Attributes:
        layout: which part of the work this process has.
        train, held_out: data; see `Kind.open`.
        assets: what the model is made of.
        model, stream: see there; of a kind with stages only when they are prepared.
        parts: of each sequence, where processes share them; else None.
    """

    model: nn.Module
    stream: Stream | EndlessStream | Prefetched
    parts: Parts | None = None

    def __init__(self, config: RunConfig, layout: Layout | None = None) -> None:
        self.config, self.kind = config, find_kind(config.task)
        self.unit, self.score, self.layout = self.kind.unit, self.kind.score, layout or Layout()
        if self.layout.config.sequence > 1:
            check_sharing(config, self.kind.shares)
            self.parts = Parts(self.layout.mesh["cp"])
        self._share = share_of_batch(config.training, self.layout.data_size)
        self.train, self.held_out = self.kind.open(config.data)
        self.assets = self.kind.make_assets(self.train, config.data)
        self.has_stages = type(self.kind).prepare is not Kind.prepare
        if not self.has_stages:
            self._set_up()

    def prepare(self, folder: Path, train: Callable[..., Any]) -> None:
        """See `Kind.prepare`."""
        self.assets |= self.kind.prepare(self, folder, train)
        self._set_up()

    def _set_up(self) -> None:
        training = self.config.training
        source = self.kind.source(self)
        place = (self.layout.data_rank, self.layout.data_size)
        stream = stream_of(source, self._share, training.seed, *place)
        ahead = batches_ahead(self.config)
        self.stream = Prefetched(stream, ahead) if ahead else stream
        self.model = self.kind.build(self.config, **self.assets)
        if training.activation_checkpointing:
            checkpoint_blocks(self.model)
        if self.parts is not None:
            self.parts.share(self.model, self.config)
        # processes that share a sequence have a part of its units each
        units = self._share * self.kind.units(self) / self.layout.config.sequence
        self.units_per_batch = max(1, round(units))
        if isinstance(source, Sized):
            check_batch(training, len(source))

    def close(self) -> None:
        """End what runs beside the training: the thread that reads ahead."""
        if isinstance(getattr(self, "stream", None), Prefetched):
            self.stream.close()  # type: ignore[union-attr]

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """See `Kind.loss`."""
        return self.kind.loss(self, model, batch)

    def weight(self, batch: Any) -> float | None:
        """See `Kind.weight`."""
        return self.kind.weight(self, batch)

    def evaluate(self, *, quick: bool, rank: int = 0, world_size: int = 1) -> Totals:
        """See `Kind.evaluate`; processes that share sequences score the same ones."""
        shared = 1 if self.parts is None else self.parts.size
        place = {"rank": rank // shared, "world_size": world_size // shared}
        return self.kind.evaluate(self, quick=quick, **place)

    def save_assets(self, folder: Path) -> None:
        """Write what the run needs besides its weights."""
        for name in self.kind.assets:
            write_asset(name, self.assets[name], folder)

    def facts(self) -> dict[str, str]:
        """What a report should say about the data and the model."""
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        rows, things = {"parameters": f"{trained:,}"}, self.kind.things
        if names := self.assets.get("classes"):
            rows["classes"] = ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")
        for label, part in (("training data", self.train), ("held-out data", self.held_out)):
            if hasattr(part, "checksum"):
                rows[label] = f"{part.name}: {len(part):,} {things}, checksum {part.checksum()}"
        rows |= self.kind.facts(self)
        count, most = len(self.held_out), self.kind.most(self.config.data)
        if most and count > most:
            rows["scored at the end"] = f"a sample of {most:,} of {count:,} held-out {things}"
        return rows


def batches_ahead(config: RunConfig) -> int:
    """How many batches a thread reads ahead; see `TrainingConfig.prefetch`.

    Raises:
        ValueError: a number where a function of the user's draws from the generators of all.
    """
    wanted, function = config.training.prefetch, getattr(config.data, "transform", "")
    if function:
        if wanted:
            raise ValueError(
                f"training.prefetch must be 0 with data.transform, got {wanted}: {function!r} "
                "draws from the generators of the whole process, as only one thread may."
            )
        return 0
    on_cpu = pick_device(config.training.device).type == "cpu"
    return (0 if on_cpu else 2) if wanted is None else wanted


def checkpoint_blocks(model: Any) -> None:
    """Let a model recompute its blocks; ValueError if it knows not how."""
    if not hasattr(model, "activation_checkpointing"):
        raise ValueError(
            "training.activation_checkpointing needs a model that has a method of that name, got "
            f"{type(model).__name__}; leave it out."
        )
    model.activation_checkpointing()


def find_kind(task: Any, where: str = "the settings") -> Kind:
    """The kind of a task: one of `TASKS`, or 'package.module:NAME' of one's own.

    By name, so that a run of text does not wait for the models of pictures.

    Raises:
        ValueError: there is none of that name.
    """
    home = task.rpartition(":")[0] if isinstance(task, str) else ""
    if not home and task not in TASKS:
        hint = suggest(show(task), TASKS)
        raise ValueError(f"unknown task {show(task)} in {where}; {hint}")
    if not home:
        built_in: Kind = named(f"foveal.recipes.{task}.kind:KIND")
        return built_in
    try:
        found = named(task)
    except (ImportError, AttributeError, ValueError, TypeError):
        raise ValueError(f"cannot import the task {task!r} of {where}.") from None
    if not isinstance(found, Kind):
        raise ValueError(f"the task {task!r} of {where} is not a foveal.recipes.kind.Kind.")
    return found


def seeded_model(config: RunConfig, **defaults: Any) -> nn.Module:
    """The model of a configuration, its weights drawn from the run's seed.

    Args:
        defaults: arguments that the task knows; see `build_model`.
    """
    model_class(config.model["name"])  # importing it may draw numbers
    torch.manual_seed(config.training.seed)
    return build_model(config.model, f"recipe {config.recipe}", **defaults)


def require_task(config: RunConfig, task: str, what: str) -> None:
    """Raise ValueError unless a run is of the kind that a command works on."""
    if config.task != task:
        raise refusal(config, what, task)


def refusal(config: RunConfig, what: str, task: str = "") -> ValueError:
    """What to raise for a run of another task than `what` needs."""
    wanted = f"the task {task!r}" if task else "another task"
    return ValueError(
        f"{what} needs a run of {wanted}, but this one trains {config.task!r}; name another run."
    )
