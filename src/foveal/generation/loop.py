"""The generate loop: prefill the prompt, then draw and step, one token at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from foveal.generation.sampling import Sampler
from foveal.generation.threads import fitting_threads

Prompts = Tensor | Sequence[Tensor] | Sequence[Sequence[int]]


class Decoder(Protocol):
    """What the loop needs of a model.

    One whose step does the same at every position says so by `recordable = True`; see Recorded.
    One that can prepare for many steps has a `stepper(rows)`, which gives a function like `step`.
    """

    def prefill(self, tokens: Tensor, max_length: int | None = None) -> tuple[Tensor, Any]:
        """(batch, tokens) -> logits after the last token (batch, num_tokens), cache."""

    def step(self, token: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """(batch,), cache -> logits after the token (batch, num_tokens), cache."""


@dataclass(frozen=True)
class Recompute:
    """A decoder without a cache: every step runs the whole sequence again.

    Slow, and the yardstick for caches. `forward`: (batch, length) -> (batch, length, num_tokens).
    """

    forward: Callable[[Tensor], Tensor]

    def prefill(self, tokens: Tensor, max_length: int | None = None) -> tuple[Tensor, Tensor]:
        """(batch, length) -> logits of the last position (batch, num_tokens), the tokens."""
        return self.forward(tokens)[:, -1], tokens

    def step(self, token: Tensor, cache: Tensor) -> tuple[Tensor, Tensor]:
        """(batch,), tokens so far (batch, length) -> logits (batch, num_tokens), all tokens."""
        return self.prefill(torch.cat((cache, token[:, None]), 1))


@dataclass(frozen=True)
class Continued:
    """A decoder that has read its prompt: `generate` goes on where that ends.

    Args:
        decoder: what reads further tokens.
        logits: (batch, num_tokens) after the prompt.
        cache: of the decoder, after the prompt. It is used up.
    """

    decoder: Decoder
    logits: Tensor
    cache: Any

    def prefill(self, tokens: Tensor, max_length: int | None = None) -> tuple[Tensor, Any]:
        """The end of the prompt (batch, any) -> logits (batch, num_tokens), cache: both known."""
        return self.logits, self.cache

    def step(self, token: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """(batch,), cache -> logits after the token (batch, num_tokens), cache."""
        return self.decoder.step(token, cache)

    def stepper(self, rows: int) -> Callable[[Tensor, Any], tuple[Tensor, Any]]:
        """That of the decoder, if it can prepare for many steps; else its step."""
        make = getattr(self.decoder, "stepper", None)
        return self.decoder.step if make is None else make(rows)


@torch.no_grad()
def generate(
    decoder: Decoder,
    prompts: Prompts,
    n: int,
    *,
    sampler: Sampler | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    stop: int | Collection[int] | None = None,
    pad: int = 0,
    seed: int | None = None,
    max_seq_len: int | None = None,
    device: torch.device | str | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Continue each prompt by up to n tokens.

    Rows of different lengths run together from the end of the shortest prompt; the rest of the
    longer prompts is fed in place of drawn tokens. So a row comes out as it would alone (greedily;
    drawn tokens depend on the whole batch through the random numbers).

    Args:
        prompts: (batch, width) int tokens, or a list of 1-D prompts of any lengths.
        n: most new tokens a row.
        sampler: how tokens are drawn; plain sampling by default.
        lengths: (batch,) number of real tokens at the front of each row, for a rectangle of
            prompts of different lengths.
        stop: token or tokens that end a row; the stop token itself is kept.
        pad: fills a row after its end.
        seed: in place of the sampler's.
        max_seq_len: most tokens that the decoder can see.
        device: where the tokens are put.
        progress: called with 1 after each position that is filled.

    Returns:
        tokens (batch, longest prompt + n): each row holds its prompt, its new tokens, then pad;
        and the number of tokens before the padding of each row (batch,).

    Raises:
        ValueError: an empty prompt, a negative n, or more tokens than max_seq_len.
    """
    prompt, length = _rectangle(prompts, lengths, pad, device)
    _check(prompt, length, n, max_seq_len)
    draw = sampler or Sampler()
    draw = draw if seed is None else replace(draw, seed=seed)
    width = prompt.shape[1]
    tokens = torch.nn.functional.pad(prompt, (0, n), value=pad)
    if n == 0:
        return tokens, length
    random = draw.generator(prompt.device)
    ends = _stop_tokens(stop, prompt.device)
    final = length + n
    start, last = int(length.min()), width + n
    is_even = ends is None and start == width  # every drawn token counts, in every row
    logits, cache = decoder.prefill(tokens[:, :start], max_length=last)
    make = getattr(decoder, "stepper", None)
    step = decoder.step if make is None else make(len(tokens))
    with fitting_threads(decoder, len(tokens), prompt.device):
        for place in range(start, last):
            drawn = draw(logits, random)
            if is_even:
                tokens[:, place] = drawn
            else:
                is_new = (place >= length) & (place < final)
                tokens[:, place] = torch.where(is_new, drawn, tokens[:, place])
            if ends is not None:
                stopped = is_new & torch.isin(tokens[:, place], ends)
                final = torch.where(stopped, place + 1, final)
            if progress is not None:
                progress(1)
            if place + 1 == last or (ends is not None and bool((final <= place + 1).all())):
                break
            logits, cache = step(tokens[:, place], cache)
    return tokens, final


def _rectangle(
    prompts: Prompts,
    lengths: Tensor | Sequence[int] | None,
    pad: int,
    device: torch.device | str | None,
) -> tuple[Tensor, Tensor]:
    """Prompts as one padded tensor (batch, width), and their lengths (batch,)."""
    if not isinstance(prompts, Tensor):
        if lengths is not None:
            raise ValueError("lengths belong to a rectangle of prompts; a list has its own.")
        return _from_list(prompts, pad, device)
    if prompts.ndim != 2:
        raise ValueError(
            f"prompt must be (batch, length), got shape {tuple(prompts.shape)}; use prompt[None] "
            "for a single one."
        )
    prompt = prompts.to(device=device, dtype=torch.long)
    batch, width = prompt.shape
    if lengths is None:
        return prompt, torch.full((batch,), width, device=prompt.device)
    length = torch.as_tensor(lengths, dtype=torch.long, device=prompt.device)
    if length.shape != (batch,) or bool((length > width).any()):
        raise ValueError(
            f"lengths must be one number a row, at most the prompt's width, got {lengths} for "
            f"prompts of shape {(batch, width)}."
        )
    width = max(0, int(length.max())) if batch else 0
    real = torch.arange(width, device=prompt.device) < length[:, None]
    return prompt[:, :width].masked_fill(~real, pad), length


def _from_list(
    prompts: Sequence[Tensor] | Sequence[Sequence[int]], pad: int, device: Any
) -> tuple[Tensor, Tensor]:
    rows = [torch.as_tensor(row, dtype=torch.long, device=device) for row in prompts]
    if any(row.ndim != 1 for row in rows):
        raise ValueError(
            "a list of prompts must hold 1-D prompts, got shapes "
            f"{[tuple(row.shape) for row in rows]}."
        )
    if not rows:
        raise ValueError("prompt must hold at least one row, got an empty list.")
    length = torch.tensor([len(row) for row in rows], device=rows[0].device)
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad), length


def _check(prompt: Tensor, length: Tensor, n: int, max_seq_len: int | None) -> None:
    if prompt.shape[0] == 0 or int(length.min()) < 1:
        raise ValueError(
            f"every prompt needs at least one token, got prompts of shape {tuple(prompt.shape)} "
            f"with lengths {length.tolist()}; start from a newline or a start token."
        )
    if n < 0:
        raise ValueError(f"n must not be negative, got {n=}.")
    longest = prompt.shape[1] + n
    if max_seq_len is not None and longest > max_seq_len:
        raise ValueError(
            f"prompt and new tokens must fit into max_seq_len={max_seq_len}, got a prompt of "
            f"{prompt.shape[1]} tokens and n={n}; shorten the prompt or ask for at most "
            f"{max(0, max_seq_len - prompt.shape[1])} tokens."
        )


def _stop_tokens(stop: int | Collection[int] | None, device: torch.device) -> Tensor | None:
    if stop is None:
        return None
    ends = [stop] if isinstance(stop, int) else list(stop)
    return torch.tensor(ends, dtype=torch.long, device=device) if ends else None
