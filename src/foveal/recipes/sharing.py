"""What [parallel] sequence does to a recipe: processes share each of its sequences.

Those that share read the same rows, and each takes its part of inputs and targets: the target of
its last token is the first token of the next part, which it has read as well.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from foveal.recipes.settings import RunConfig


class Parts:
    """Parts of rows that lie on several processes, one after the other.

    Args:
        mesh: the processes: mesh["cp"], a process group, or a simulated rank.

    Attributes:
        size: how many there are.
    """

    def __init__(self, mesh: Any) -> None:
        from foveal import parallel  # only where somebody shares anything
        from foveal.parallel.ranks import as_ranks

        self._mesh, self._take, self._shard = mesh, parallel.take, parallel.shard_sequence
        self.size = as_ranks(mesh).size

    def take(self, rows: Tensor) -> Tensor:
        """This process's part of rows (batch, length)."""
        return self._take(rows, self._mesh, 1, align_of(rows.shape[1], self.size))

    def share(self, model: nn.Module, config: RunConfig) -> None:
        """Let a model take such parts.

        Raises:
            ValueError: it cannot.
        """
        try:
            self._shard(model, self._mesh)
        except ValueError as error:
            raise ValueError(
                f"{error} Leave out parallel.sequence={config.parallel.sequence}: the processes "
                "then share the examples."
            ) from None


def align_of(length: int, ranks: int) -> int:
    """Where parts may begin: at multiples of a power of two near a 64th of one.

    Larger clusters of pooled keys then lie within one process.
    """
    return 1 << max(0, (length // (64 * ranks)).bit_length() - 1)


def check_sharing(config: RunConfig, shares: bool) -> None:
    """Raise ValueError where a task's sequences, or these settings, cannot be shared.

    Args:
        shares: whether the task's can, see `Kind.shares`.
    """
    given = f"parallel.sequence={config.parallel.sequence}"
    if config.parallel.sequence == 1:
        return
    if not shares:
        raise ValueError(
            f"the task {config.task!r} has no long sequences to share, got {given}; leave it out: "
            "the processes then share the examples."
        )
    if config.training.compile:
        raise ValueError(
            f"training.compile must be false where sequences are shared, got {given}."
        )
    if getattr(config.data, "pack", False):
        raise ValueError(
            f"data.pack must be false where sequences are shared, got {given}; a window is then "
            "one text, wherever files begin."
        )
