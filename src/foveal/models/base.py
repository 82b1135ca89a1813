"""What every model has: a configuration, files, a cost, activation checkpointing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from foveal.common.lazy import provided
from foveal.layers.weights import device_of, dtype_of
from foveal.models.config import ModelConfig
from foveal.models.storage import load_model, save_model
from foveal.models.summary import summary


@contextmanager
def evaluating(*modules: Any) -> Iterator[None]:
    """Evaluation mode for modules (what is none is passed over); afterwards each part's own."""
    parts = [part for one in modules if isinstance(one, nn.Module) for part in one.modules()]
    modes = [(part, part.training) for part in parts]
    try:
        for one in modules:
            if isinstance(one, nn.Module):
                one.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training


class Model(nn.Module):
    """Base of all models.

    Attributes:
        family: name of the family in configuration files and in the registry.
        settings: the frozen configuration.
        pipeline_tag: what the Hub calls its use, or None.
        sharing: with whom it shares the sequence, see `foveal.parallel.shard_sequence`; None =
            nobody.
    """

    family: ClassVar[str]
    pipeline_tag: ClassVar[str | None] = None
    config_class: ClassVar[type[ModelConfig]]
    settings: ModelConfig
    max_seq_len: int  # of models that read tokens
    sharing: Any = None

    @property
    def config(self) -> dict[str, Any]:
        """The constructor's keywords and their values."""
        return self.settings.to_dict()

    @property
    def num_parameters(self) -> int:
        """Number of trained values."""
        return sum(p.numel() for p in self.parameters())

    @property
    def device(self) -> torch.device:
        """Where the weights are: the device of the first one."""
        return device_of(self)

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are made of: the dtype of the first floating-point one."""
        return dtype_of(self)

    def _repr_html_(self) -> str:
        """What a notebook shows: the model's parts, and the patterns of its layers."""
        return summary(self)

    def example_inputs(self, length: Any = None) -> tuple[Tensor, ...]:
        """Inputs of `forward` without values, on the meta device: one sequence, or one picture.

        Args:
            length: tokens, or (height, width) of the picture; the model's own when None.
        """
        count = self.max_seq_len if length is None else length
        return (torch.empty(1, count, dtype=torch.long, device="meta"),)

    def activation_checkpointing(self, enabled: bool = True) -> Self:
        """Recompute blocks in the backward pass: less memory, about a third more time."""
        for module in self.modules():
            if isinstance(getattr(module, "checkpointing", None), bool):
                module.checkpointing = enabled  # type: ignore[assignment]
        return self

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` into the folder, each atomically."""
        save_model(self, folder)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        device: torch.device | str | None = None,
        *,
        dtype: torch.dtype | str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> Self:
        """The model that `save_pretrained` or `push_to_hub` wrote, in evaluation mode.

        Args:
            folder: the folder, or "user/name" of a model on the Hub where no folder is called so.
            device: of its weights, the CPU unless given.
            dtype: of its weights, such as "bfloat16"; that of the file unless given.
            revision, token, cache_dir, local_files_only, force_download: of the Hub, see
                `load_model`.

        Raises:
            FileNotFoundError: a file is missing, or there is no such model on the Hub.
            ValueError: a file is damaged, or describes another model; a device that is not there,
                or a dtype that no model computes in.
            PermissionError, ConnectionError: the Hub refuses, or cannot be reached.
        """
        model = load_model(
            folder,
            device,
            dtype=dtype,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            force_download=force_download,
        )
        if not isinstance(model, cls):
            raise ValueError(
                f"{folder} holds a model of family {model.family!r}, not a {cls.__name__}; use "
                f"{type(model).__name__}.from_pretrained."
            )
        return model

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        commit_message: str | None = None,
        revision: str | None = None,
        branch: str | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
        run: str | Path | None = None,
        **about: Any,
    ) -> Any:
        """Upload the model in one commit, with a card that says what it is.

        Args:
            repo_id: "user/name" on the Hub; made if there is none.
            private: who may see a repository that is made; the Hub decides unless given. One that
                is there must be so already.
            commit_message: of the commit.
            revision, branch: two names of the branch; made from the main one if there is none.
            token: who uploads; the one that was logged in with unless given.
            create_pr: open a pull request in place of a commit.
            run: the folder of the run of `foveal train` that the weights are from, or "latest":
                the card tells its data, scores, settings and command, and what belongs to it,
                such as the names of classes, is uploaded too.
            about: what else the card tells: `description`, `data`, `datasets`, `scores`,
                `scored_on`, `command`, `license`, `language`, `tags`, `pipeline_tag`, `facts`;
                see `foveal.integrations.hub.Card`.

        Returns:
            huggingface_hub's CommitInfo: `oid` is the commit, `pr_revision` that of a request.

        Raises:
            ValueError: a name that the Hub cannot have, or a keyword that the card does not.
            ModuleNotFoundError: huggingface_hub is not installed.
            PermissionError, ConnectionError: the Hub refuses, or cannot be reached; then the
                repository has all of the commit or nothing of it.
        """
        return provided("push_to_hub")(
            self,
            repo_id,
            private=private,
            commit_message=commit_message,
            revision=branch if revision is None else revision,
            token=token,
            create_pr=create_pr,
            run=run,
            about=about,
        )
