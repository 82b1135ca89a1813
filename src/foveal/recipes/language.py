"""What tasks share whose models say which token comes next: bytes, and values of pixels."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional as F

from foveal.common.dtypes import wide
from foveal.data.text import IGNORED
from foveal.generation import Sampler
from foveal.recipes.charts import Entries, chart, loss_curves, score_curve
from foveal.recipes.kind import Kind, KindTask, Run, seeded_model
from foveal.recipes.runs import open_model
from foveal.recipes.settings import RunConfig

if TYPE_CHECKING:
    from foveal.recipes.beside import Continuations

NUM_TOKENS = 256


class NextToken(Kind):
    """Language models of tokens below 256, scored in bits.

    Attributes:
        must, seen: what "must be causal", and what it would see otherwise.
        trained: what the loss is of, in a report.
    """

    unit = "tokens"
    shares = True
    must = seen = trained = ""

    def max_seq_len(self, data: Any) -> int:
        """Tokens that the model looks at, unless the recipe says so."""
        raise NotImplementedError

    def build(self, config: RunConfig, **assets: Any) -> nn.Module:
        """The model of a configuration; ValueError if it is not causal."""
        longest = self.max_seq_len(config.data)
        count = config.model.get("num_tokens", NUM_TOKENS)
        if isinstance(count, int) and count > NUM_TOKENS:  # which it could write, and nobody read
            raise ValueError(
                f"num_tokens in [model] of recipe {config.recipe} must be at most {NUM_TOKENS} "
                f"for {self.must}, whose tokens are bytes, got {count}."
            )
        model = seeded_model(config, num_tokens=NUM_TOKENS, max_seq_len=longest)
        if not getattr(model, "is_causal", True):
            raise ValueError(
                f"{self.must} must be causal, or it would see {self.seen}; use causal patterns, "
                f"got {config.model.get('pattern')!r}."
            )
        chunk = config.training.loss_chunk
        if chunk and not getattr(model, "takes_targets", False):
            raise ValueError(
                f"training.loss_chunk={chunk} needs a model that takes targets, such as a "
                f"TransformerLM, got {config.model['name']!r}; set training.loss_chunk = 0."
            )
        return model

    def loss(self, task: KindTask, model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Mean cross-entropy in nats of the next token; inputs and targets (batch, length).

        Positions of packed rows come third. Targets of -100 are left out. Of a process that shares
        its rows with others, the loss of its part as often as there are parts: the mean over the
        processes, which is what becomes of losses and gradients, is that of whole rows.
        """
        inputs, targets, *places = batch
        packed = {"position_ids": places[0]} if places else {}
        chunk, parts, size = task.config.training.loss_chunk, task.parts, 1
        if parts is None and not chunk:
            logits = wide(model(inputs, **packed)).flatten(0, 1)
            return F.cross_entropy(logits, targets.flatten())
        count = (targets != IGNORED).sum()
        if parts is not None:
            inputs, targets, size = parts.take(inputs), parts.take(targets), parts.size
        return losses_of(model, inputs, targets, chunk, **packed).sum() * size / count

    def weight(self, task: KindTask, batch: tuple[Tensor, ...]) -> float | None:
        """Tokens that are asked for, which vary where rows are packed."""
        _, targets, *places = batch
        return float((targets != IGNORED).sum()) if places else None

    def start(self, run: Run, prompt: str) -> Tensor:
        """The tokens (1, length) that stand for the prompt of `foveal generate`."""
        raise NotImplementedError

    def told(self, tokens: Tensor) -> str:
        """Tokens (length) for people."""
        raise NotImplementedError

    def compare(
        self, run: Run, program: str, prompt: str, length: int, *, device: str, **sampling: Any
    ) -> Continuations:
        """Tokens that follow a prompt, of whose end so much is read as leaves room for them."""
        from foveal.recipes.beside import Continuations, continue_both, open_beside

        model, _ = open_model(run, device)
        exported, same = open_beside(program, model)
        most = exported.program.size("length")[1]
        longest = model.max_seq_len if most is None else min(most, model.max_seq_len)
        if not 1 <= length < longest:
            raise ValueError(
                f"length must be at least 1 and below {longest:,}, all that model and program "
                f"look at, to be compared; got {length}."
            )
        given = self.start(run, prompt)[:, length - longest :]
        sampler = Sampler(**{"temperature": 0.0, "seed": 0, **sampling})
        ours, theirs, told = continue_both(model, exported, given, length, sampler)
        shown, new = self.told(given[0]) if prompt else "", given.shape[1]
        texts = self.told(ours[0, new:]), self.told(theirs[0, new:])
        return Continuations(shown, texts[0], texts[1], **told, same_weights=same)

    def charts(self, pictures: Path, entries: Entries) -> list[tuple[str, Path]]:
        """The loss on training and held-out data, in bits."""
        curves = loss_curves(entries, 1 / math.log(2))
        curves += score_curve(entries, self.score, "held out") if curves[0].x else []
        title = f"Loss on training and held-out {self.trained}"
        return chart(title, curves, pictures / "training.png", self.score.replace("_", " "))


def losses_of(
    model: nn.Module, inputs: Tensor, targets: Tensor, chunk: int = 0, **packed: Tensor
) -> Tensor:
    """Nats of each of the targets (batch, length), in any shape; see `TrainingConfig.loss_chunk`.

    Args:
        inputs: tokens (batch, length).
        packed: position_ids (batch, length), of packed rows.
    """
    if chunk:
        found: Tensor = model(inputs, targets=targets, chunk=chunk, **packed)
        return found
    logits = wide(model(inputs, **packed)).flatten(0, 1)
    return F.cross_entropy(logits, targets.flatten(), reduction="none")


def sum_of_bits(losses: Tensor) -> float:
    """Bits in all, of losses (any) in nats."""
    return float(losses.double().sum()) / math.log(2)
