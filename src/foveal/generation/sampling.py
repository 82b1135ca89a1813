"""From logits to the next token."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from foveal.common.checks import as_int, as_number
from foveal.common.dtypes import wide

TINY = 5e-324
"""The least number above 0."""


@dataclass(frozen=True)
class Sampler:
    """How the next token is drawn; the cuts apply in the order top_k, top_p, min_p.

    Args:
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: draw among the k likeliest tokens only.
        top_p: draw among the fewest likeliest tokens whose probabilities reach this sum
            (Holtzman et al., "The Curious Case of Neural Text Degeneration", 2020).
        min_p: drop tokens less probable than min_p times the likeliest one
            (Nguyen et al., "Turning Up the Heat: Min-p Sampling", 2024).
        seed: makes the draws of a generation repeatable; None uses torch's global state.

    Raises:
        ValueError: a value outside its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        self._check("temperature", 0.0, math.inf, "0 (greedy) or more")
        if self.top_k is not None:
            object.__setattr__(self, "top_k", as_int("top_k", self.top_k, 1))
        self._check("top_p", TINY, 1.0, "above 0 and at most 1")
        self._check("min_p", 0.0, 1.0, "from 0 to 1")
        if self.seed is not None:
            seed = as_int("seed", self.seed)
            if not -(1 << 63) <= seed < 1 << 64:
                raise ValueError(f"seed must be a number of 64 bits, got {seed=}.")
            object.__setattr__(self, "seed", seed)

    def _check(self, name: str, least: float, most: float, range_: str) -> None:
        value = getattr(self, name)
        if value is None and name != "temperature":
            return
        try:
            found = float(as_number(name, value))
        except ValueError:
            found = math.nan
        if not least <= found <= most:
            raise ValueError(f"{name} must be a number, {range_}, got {name}={value!r}.")
        object.__setattr__(self, name, found)

    def generator(self, device: torch.device) -> torch.Generator | None:
        """The random numbers of one generation, from the seed on; None without a seed."""
        return None if self.seed is None else torch.Generator(device).manual_seed(self.seed)

    def __call__(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw one token a row: logits (batch, num_tokens) -> (batch,) int64."""
        if self.temperature == 0.0:
            return logits.argmax(-1)
        return _draw(self.probabilities(logits), generator)

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution that is drawn from: (batch, num_tokens), float32 at least."""
        if self.temperature == 0.0:
            return torch.zeros_like(logits).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        logits = wide(logits)
        # the largest becomes 0, so that no temperature, however small, overflows
        least = torch.finfo(logits.dtype).tiny  # less would count as 0
        logits = (logits - logits.amax(-1, keepdim=True)) / max(self.temperature, least)
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            logits = self._keep_top_k(logits, self.top_k)
        probs = logits.softmax(-1)
        if self.top_p is not None and self.top_p < 1.0:
            probs = self._keep_top_p(probs, self.top_p)
        if self.min_p:
            floor = self.min_p * probs.amax(-1, keepdim=True)
            probs = probs.masked_fill(probs < floor, 0.0)
        return probs / probs.sum(-1, keepdim=True)

    @staticmethod
    def _keep_top_k(logits: Tensor, k: int) -> Tensor:
        values, places = logits.topk(k, dim=-1)  # by place, so that ties do not widen the choice
        return torch.full_like(logits, -math.inf).scatter_(-1, places, values)

    @staticmethod
    def _keep_top_p(probs: Tensor, p: float) -> Tensor:
        ranked, places = probs.sort(dim=-1, descending=True, stable=True)
        before = ranked.cumsum(-1) - ranked  # the likeliest token has nothing before it: it stays
        beyond = (before >= p) & (before > 0)  # for p may be 0 in float32
        return torch.zeros_like(probs).scatter_(-1, places, ranked.masked_fill(beyond, 0.0))


def _draw(probs: Tensor, generator: torch.Generator | None) -> Tensor:
    """What torch.multinomial draws, without asking several times whether these are probabilities.

    The least of waiting times of these rates is that of one token, with its probability.
    """
    if probs.device.type == "cpu" and probs.dtype in (torch.float32, torch.float64):
        rates, drawn = (probs / torch.empty_like(probs).exponential_(generator=generator)).max(-1)
        if math.isfinite(rates.sum().item()):
            return drawn
    return torch.multinomial(probs, 1, generator=generator)[:, 0]  # which says what is wrong
