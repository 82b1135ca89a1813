"""AutoregressiveWrapper of hourglass-transformer-pytorch; see compat.autoregressive."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from foveal.compat.autoregressive import Autoregressive, eval_decorator, top_k
from foveal.compat.helpers import exists

__all__ = ["AutoregressiveWrapper", "exists", "eval_decorator", "top_k"]


class AutoregressiveWrapper(Autoregressive):
    """A net with the loss of its next tokens, and sampling; see Autoregressive.

    Args:
        net: the language model.
        pad_value: fills rows after their end, and is left out of the loss.
    """

    def __init__(self, net: nn.Module, pad_value: int = 0) -> None:
        super().__init__(net, pad_value, pad_value)

    def generate(
        self,
        start_tokens: Tensor,
        seq_len: int,
        eos_token: int | None = None,
        temperature: float = 1.0,
        filter_thres: float = 0.9,
        **kwargs: Any,
    ) -> Tensor:
        """Up to seq_len new tokens; as h-transformer-1d's, whose wrapper says what is what."""
        keep = lambda logits: top_k(logits, filter_thres)  # noqa: E731
        return self._generate(start_tokens, seq_len, eos_token, temperature, keep, kwargs)
