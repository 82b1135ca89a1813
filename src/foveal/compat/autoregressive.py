"""Training and sampling of a language model, as the AutoregressiveWrappers of two packages do.

Differs from the packages in: `eos_token` works (the packages raise NameError), `filter_logits_fn`
is honoured, temperature=0 takes the likeliest token, prompts may have one dimension in both, a
mask as long as the tokens fits the loss, and a small vocabulary keeps at least one token.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foveal.models.base import evaluating


def eval_decorator(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A method that runs in evaluation mode and leaves the mode as it was."""

    @wraps(fn)
    def inner(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with evaluating(model):
            return fn(model, *args, **kwargs)

    return inner


def top_k(logits: Tensor, thres: float = 0.9) -> Tensor:
    """All but the largest logits (..., num_tokens) at -inf; `thres` is the share that goes."""
    kept = max(int((1 - thres) * logits.shape[-1]), 1)
    values, places = logits.topk(kept)
    return torch.full_like(logits, -torch.inf).scatter(-1, places, values)


class Autoregressive(nn.Module):
    """What the two wrappers share.

    Args:
        net: (batch, length) tokens -> (batch, length, num_tokens) logits, with `max_seq_len`.
        ignore_index: label that the loss leaves out.
        pad_value: fills rows after their end.

    Raises:
        ValueError: the net does not say how many tokens it can see.
    """

    def __init__(self, net: nn.Module, ignore_index: int, pad_value: int) -> None:
        super().__init__()
        if not hasattr(net, "max_seq_len"):
            raise ValueError(f"net must have max_seq_len, got {type(net).__name__} without.")
        self.pad_value, self.ignore_index = pad_value, ignore_index
        self.net = net
        self.max_seq_len: int = net.max_seq_len  # type: ignore[assignment]

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        """The mean cross-entropy, in nats, of each token x (batch, length) after those before.

        Keywords go to the net; a mask may be as long as x.
        """
        mask = kwargs.get("mask")
        if mask is not None and mask.shape[1] == x.shape[1]:
            kwargs["mask"] = mask[:, :-1]
        logits = self.net(x[:, :-1], **kwargs)
        return F.cross_entropy(
            logits.transpose(1, 2), x[:, 1:].long(), ignore_index=self.ignore_index
        )

    @torch.no_grad()
    @eval_decorator
    def _generate(
        self,
        prompt: Tensor,
        count: int,
        eos_token: int | None,
        temperature: float,
        keep: Callable[[Tensor], Tensor],
        kwargs: dict[str, Any],
    ) -> Tensor:
        """New tokens (batch, up to count) of prompts (batch, length), or (up to count,) of one."""
        out = prompt if prompt.ndim == 2 else prompt[None]
        first = out.shape[1]
        for _ in range(count):
            logits = self.net(out[:, -self.max_seq_len :], **kwargs)[:, -1]
            out = torch.cat((out, self._draw(keep(logits), temperature).to(out.dtype)), 1)
            if eos_token is None:
                continue
            ended = out[:, first:] == eos_token
            if bool(ended.any(1).all()):
                after = ended.cumsum(1) - ended.int() > 0
                out[:, first:] = out[:, first:].masked_fill(after, self.pad_value)
                break
        new = out[:, first:]
        return new if prompt.ndim == 2 else new[0]

    @staticmethod
    def _draw(logits: Tensor, temperature: float) -> Tensor:
        if temperature == 0:
            return logits.argmax(-1, keepdim=True)
        return torch.multinomial((logits / temperature).softmax(-1), 1)
