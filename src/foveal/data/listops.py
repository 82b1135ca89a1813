"""ListOps: nested operations on digits, whose value is one of ten classes.

The generator of Long Range Arena (Tay et al., 2021) with a seed: `[MAX 4 3 [MIN 2 3 ] 1 0 ]` is 4.
An expression is a digit with probability 3/4 (always at the greatest depth), otherwise an operator
over 2 to 10 expressions; those of more than 500 and fewer than 2000 symbols are kept, each once.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np

PAD = 0
SYMBOLS = ("", *"0123456789", "[MIN", "[MAX", "[MED", "[SM", "]")
"""The symbol of each token; token 0 is padding."""

NUM_TOKENS = len(SYMBOLS)
MAX_DEPTH, MAX_ARGS, LEAF = 10, 10, 0.75
MIN_LENGTH, MAX_LENGTH = 500, 2000

_ZERO, _FIRST_OPERATOR, _CLOSE = 1, 11, 15

OPERATORS: tuple[Callable[[Sequence[int]], int], ...] = (
    min,
    max,
    lambda x: (sorted(x)[(len(x) - 1) // 2] + sorted(x)[len(x) // 2]) // 2,  # rounded down
    lambda x: sum(x) % 10,
)
"""What [MIN, [MAX, [MED and [SM make of the values of their arguments."""


class _TooLongError(Exception):
    """An expression has reached the length from which on it is thrown away."""


def generate(
    count: int,
    seed: int = 0,
    min_length: int = MIN_LENGTH,
    max_length: int = MAX_LENGTH,
    max_depth: int = MAX_DEPTH,
    max_args: int = MAX_ARGS,
) -> Iterator[tuple[np.ndarray, int]]:
    """Different expressions, always the same for a seed; fewer are a prefix of more.

    Args:
        count: how many.
        min_length, max_length: lengths between these, both excluded, are kept.
        max_depth, max_args: of the nesting, and of an operator.

    Yields:
        tokens uint8 (length,), and the value from 0 to 9.

    Raises:
        ValueError: limits that no expression meets.
    """
    if max_args < 2 or max_depth < 2 or not 0 <= min_length < max_length - 4:
        raise ValueError(
            "max_depth and max_args must be at least 2 and min_length well below max_length, got "
            f"{max_depth=}, {max_args=}, {min_length=}, {max_length=}."
        )
    draw = random.Random(seed)
    seen: set[bytes] = set()
    while len(seen) < count:
        tokens = bytearray()
        try:
            value = _expression(draw, tokens, 1, max_length, max_depth, max_args)
        except _TooLongError:
            continue
        if len(tokens) > min_length and bytes(tokens) not in seen:
            seen.add(bytes(tokens))
            yield np.frombuffer(tokens, np.uint8), value


def _expression(
    draw: random.Random, tokens: bytearray, depth: int, limit: int, max_depth: int, max_args: int
) -> int:
    """Append an expression and return its value."""
    if len(tokens) + 1 >= limit:
        raise _TooLongError
    if depth == max_depth or draw.random() < LEAF:
        value = int(draw.random() * 10)
        tokens.append(_ZERO + value)
        return value
    operator = int(draw.random() * len(OPERATORS))
    tokens.append(_FIRST_OPERATOR + operator)
    values = [
        _expression(draw, tokens, depth + 1, limit, max_depth, max_args)
        for _ in range(2 + int(draw.random() * (max_args - 1)))
    ]
    tokens.append(_CLOSE)
    if len(tokens) >= limit:
        raise _TooLongError
    return OPERATORS[operator](values)


def to_text(tokens: Sequence[int] | np.ndarray) -> str:
    """Symbols of tokens, padding left out: "[MAX 4 3 ]"."""
    return " ".join(SYMBOLS[token] for token in tokens if token != PAD)


def evaluate(text: str) -> int:
    """The value of an expression written as by `to_text`.

    Raises:
        ValueError: it is not one whole expression.
    """
    open_: list[tuple[int, list[int]]] = [(-1, [])]
    for symbol in text.split():
        if symbol not in SYMBOLS:
            raise ValueError(
                f"{symbol!r} is no symbol of ListOps; known: {' '.join(SYMBOLS[1:])}."
            )
        token = SYMBOLS.index(symbol)
        if _FIRST_OPERATOR <= token < _CLOSE:
            open_.append((token - _FIRST_OPERATOR, []))
        elif token != _CLOSE:
            open_[-1][1].append(token - _ZERO)
        elif len(open_) > 1 and open_[-1][1]:
            operator, values = open_.pop()
            open_[-1][1].append(OPERATORS[operator](values))
        else:
            raise ValueError(f"an expression closes what it has not filled: {text!r}.")
    if len(open_) > 1 or len(open_[0][1]) != 1:
        raise ValueError(f"text must be one whole expression, got {text!r}.")
    return open_[0][1][0]
