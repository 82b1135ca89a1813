"""Questions about an object whose answers torch's compiler takes as constants."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import TypeVar

import torch

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")

BY_ADDRESS = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13)
"""Before 2.13 the compiler hands no objects of ours to such a question, but their addresses: both
are guarded by the identity of the object."""


def constant_of(question: Callable[[Asked], Answer]) -> Callable[[Asked], Answer]:
    """Decorator: the compiler asks once for each object and does not trace the question.

    What torch.compiler.assume_constant_result does, which would import the compiler (a second).
    """
    question._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return _by_address(question) if BY_ADDRESS else question


def _by_address(question: Callable[[Asked], Answer]) -> Callable[[Asked], Answer]:
    def answer(address: int) -> Answer:
        return question(ctypes.cast(address, ctypes.py_object).value)

    answer._dynamo_marked_constant = True  # type: ignore[attr-defined]

    @functools.wraps(question)
    def ask(one: Asked) -> Answer:
        return answer(id(one)) if torch.compiler.is_compiling() else question(one)

    del ask._dynamo_marked_constant  # type: ignore[attr-defined] # which wraps copies
    return ask
