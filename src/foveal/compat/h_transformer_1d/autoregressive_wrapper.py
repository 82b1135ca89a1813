"""AutoregressiveWrapper of h-transformer-1d; see compat.autoregressive for what differs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from foveal.compat.autoregressive import Autoregressive, eval_decorator, top_k
from foveal.compat.helpers import exists

__all__ = ["AutoregressiveWrapper", "exists", "eval_decorator", "top_k"]


class AutoregressiveWrapper(Autoregressive):
    """A net with the loss of its next tokens, and sampling; see Autoregressive.

    Args:
        net: the language model.
        ignore_index: label that the loss leaves out.
        pad_value: fills rows after their end.
    """

    def __init__(self, net: nn.Module, ignore_index: int = -100, pad_value: int = 0) -> None:
        super().__init__(net, ignore_index, pad_value)

    def generate(
        self,
        start_tokens: Tensor,
        seq_len: int,
        eos_token: int | None = None,
        temperature: float = 1.0,
        filter_logits_fn: Callable[..., Tensor] = top_k,
        filter_thres: float = 0.9,
        **kwargs: Any,
    ) -> Tensor:
        """Up to seq_len new tokens after each prompt; a full context loses its oldest.

        Args:
            start_tokens: (batch, length) or (length,) int.
            eos_token: ends a row; generation stops when all have ended.
            temperature: divides the logits; 0 takes the likeliest token.
            filter_logits_fn: called with the logits (batch, num_tokens) and thres=filter_thres.
            filter_thres: share of the vocabulary that is left out.
            kwargs: for the net.

        Returns:
            (batch, up to seq_len), or (up to seq_len,) for a prompt of one dimension.
        """
        keep = lambda logits: filter_logits_fn(logits, thres=filter_thres)  # noqa: E731
        return self._generate(start_tokens, seq_len, eos_token, temperature, keep, kwargs)
