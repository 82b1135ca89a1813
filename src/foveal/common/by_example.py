"""What a model drops while it trains is decided by the global example, not by who computes it.

A training says which rows of the step's batch are here (`rows_of_step`). Each random call of the
model then has a number, and what it draws for a row is a hash of the seed, the step, the row and
that number: any number of processes and micro-batches drop the same. A call that is made again, by
a checkpoint or a reversible layer, is known by the state of torch's generator, which these put
back. Without a training, torch draws as ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from foveal.common.hashing import STEP, mix, row_words

_HALVES = 1 << 16


class _Rows:
    """Rows that are here: their keys uint64 (rows,), and one that all processes have."""

    def __init__(self, keys: np.ndarray, shared: np.ndarray, alone: bool = False) -> None:
        self.keys, self.shared, self.alone = keys, shared, alone
        self._calls: dict[int, int] = {}

    def number(self) -> np.ndarray:
        """That of a call, (1,) uint64."""
        # what is computed of a row alone is computed again as a whole, so that counting is enough
        drawn = len(self._calls) if self.alone else int(torch.randint(1 << 62, (), device="cpu"))
        return self.number_of(drawn)

    def number_of(self, drawn: int) -> np.ndarray:
        """The same again where the same was drawn before."""
        found = self._calls.setdefault(drawn, len(self._calls))
        return np.array([found + 1], np.uint64) * STEP

    def of_call(self, number: np.ndarray, count: int) -> np.ndarray:
        """Keys for a call on `count` rows, several to an example, which lie side by side."""
        each = count // len(self.keys)
        inner = np.arange(1, each + 1, dtype=np.uint64) * STEP
        keys = mix(self.keys + number)[:, None]
        return mix(keys + inner).reshape(-1) if each > 1 else keys[:, 0]


_rows: _Rows | None = None
_active = False  # what compiled code looks at


def is_active() -> bool:
    """Whether a training has said which rows are here."""
    return _active


@contextmanager
def rows_of_step(seed: int, step: int, numbers: np.ndarray) -> Iterator[None]:
    """Within it, forward and backward, what is random belongs to rows of the batch of a step.

    Args:
        seed: of the training.
        numbers: of the rows that are here, in the batch of all processes and micro-batches.
    """
    key = np.random.SeedSequence([seed, step, 17]).generate_state(1, np.uint64)
    with _these(_Rows(mix((numbers.astype(np.uint64) + np.uint64(1)) * STEP ^ key), mix(key))):
        yield


@contextmanager
def _these(rows: _Rows) -> Iterator[None]:
    global _rows, _active
    before = _rows, _active
    _rows, _active = rows, True
    try:
        yield
    finally:
        _rows, _active = before


def serves(count: int) -> bool:
    """Whether `count` rows of a tensor are the examples that are here, or several of each."""
    if torch.compiler.is_compiling():
        return _active
    return _rows is not None and count > 0 and count % len(_rows.keys) == 0


def wants_rows(count: int) -> bool:
    """Whether what no function here draws should be computed within `apart`."""
    if torch.compiler.is_compiling():
        return False
    return _rows is not None and not _rows.alone and serves(count)


def apart(count: int, size: int) -> list[AbstractContextManager[None]]:
    """For each `size` of `count` rows: within it, each row draws what it would draw alone."""
    assert _rows is not None
    rows = _rows
    keys = rows.of_call(rows.number(), count)
    parts = [keys[first : first + size] for first in range(0, count, size)]
    return [_these(_Rows(part, rows.shared, alone=True)) for part in parts]


def held(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function, which draws the same whenever it is called: now, and in a backward pass.

    Of rows that are `apart`; all others are known by the state of torch's generator.
    """
    if torch.compiler.is_compiling() or _rows is None or not _rows.alone:
        return function
    rows = _rows
    keys = rows.of_call(rows.number(), len(rows.keys))

    def run(*given: Any) -> Tensor:
        with _these(_Rows(keys, rows.shared, alone=True)):
            return function(*given)

    return run


def _keys(x: Tensor) -> Tensor:
    """Of this call, for the rows of x: (rows,) int64 on its device."""
    if torch.compiler.is_compiling():
        drawn = torch.randint(1 << 62, (), device="cpu")
        return torch.ops.foveal.keys_of_rows(drawn, x.shape[0]).to(x.device)
    assert _rows is not None
    keys = torch.from_numpy(_rows.of_call(_rows.number(), x.shape[0]).view(np.int64))
    return keys.to(x.device, non_blocking=True)


def _keys_of_rows(drawn: Tensor, count: int) -> Tensor:
    """What compiled code asks while it runs."""
    if _rows is None or count % len(_rows.keys):
        keys = mix(np.arange(count, dtype=np.uint64) * STEP ^ np.array([int(drawn)], np.uint64))
    else:
        keys = _rows.of_call(_rows.number_of(int(drawn)), count)
    return torch.from_numpy(keys.view(np.int64))


torch.library.define(
    "foveal::keys_of_rows",
    "(Tensor drawn, SymInt count) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.impl("foveal::keys_of_rows", "CPU", _keys_of_rows)
torch.library.register_fake(
    "foveal::keys_of_rows", lambda drawn, count: drawn.new_empty((count,), dtype=torch.int64)
)


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """Zeros in place of a share `p` of x (examples, ...), the rest scaled up; as torch's.

    In a training it drops the same of an example wherever that is. The share is rounded to
    1 / 65,536.
    """
    if not training:  # not even an operation that a graph would hold
        return x
    if not (p and _active and x.ndim and serves(x.shape[0])):
        return F.dropout(x, p)
    kept = max(1, round((1 - p) * _HALVES))
    if kept == _HALVES or not x.numel():
        return x
    each = x.numel() // x.shape[0]
    words = row_words(_keys(x), (each + 1) // 2)
    stays = _below(_halves(words)[:, :each], kept - _HALVES // 2, x).view(x.shape)
    scale = _HALVES / kept
    # one factor where that rounds as two do; by numbers and not by a mask, which takes ten times
    if x.dtype in (torch.float32, torch.float64):
        return x * stays.mul_(scale)
    return x * stays * scale


def _below(halves: Tensor, bound: int, like: Tensor) -> Tensor:
    """1 where a number is below the bound and 0 elsewhere, in the dtype of a tensor."""
    if torch.compiler.is_compiling() or like.device.type != "cpu":
        return (halves < bound).to(like.dtype)
    return torch.lt(halves, bound, out=torch.empty(halves.shape, dtype=like.dtype, device="cpu"))


def _halves(words: Tensor) -> Tensor:
    """Words (rows, count) int32 -> twice as many of 16 bits, the lower first."""
    if not torch.compiler.is_compiling():
        return words.view(torch.int16)
    return torch.stack([words << 16 >> 16, words >> 16], -1).flatten(1)


def uniform(like: Tensor, *shape: int) -> Tensor:
    """Numbers above 0 and below 1 for each row of a tensor, (rows, *shape) float32."""
    count = like.shape[0]
    if not (_active and serves(count)):
        return torch.rand(count, *shape, device=like.device)
    words = row_words(_keys(like), int(np.prod(shape)) if shape else 1)
    return (((words & 0xFFFFFF) + 0.5) * 2.0**-24).reshape(count, *shape)


def shared_uniform(count: int) -> list[float]:
    """`count` numbers of at least 0 and below 1 that all processes draw alike."""
    if _rows is None or torch.compiler.is_compiling():
        found: list[float] = torch.rand(count).tolist()
        return found
    words = mix(mix(_rows.shared + _rows.number()) + np.arange(count, dtype=np.uint64) * STEP)
    return [float(word) for word in (words >> np.uint64(11)) * 2.0**-53]


def shared_below(count: int) -> int:
    """A number of at least 0 and below `count` that all processes draw alike."""
    return int(shared_uniform(1)[0] * count) if _active else int(torch.randint(count, ()))


def seed() -> Tensor:
    """A seed of a call, scalar int64, or where rows are `apart` one for each: (rows, 1)."""
    if torch.compiler.is_compiling() or _rows is None or not _rows.alone:
        # drawn as a tensor, so that a compiled graph draws a new one at every call
        return torch.randint(1 << 62, (), device="cpu")
    return seeds()[:, None]


def seeds() -> Tensor:
    """One of a call for each example that is here, (examples,) int64; without a training one."""
    if torch.compiler.is_compiling() or _rows is None:
        return torch.randint(1 << 62, (1,), device="cpu")
    words = _rows.of_call(_rows.number(), len(_rows.keys)) >> np.uint64(2)
    return torch.from_numpy(words.view(np.int64))
