"""Decoding steps as one CUDA graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from foveal.caches.fixed import fix, load
from foveal.generation.loop import Decoder

WARM = 3
"""Steps before the recording, in which libraries choose their kernels and make their buffers."""


class Recorded:
    """A decoder whose step is recorded once, on a GPU as a CUDA graph, and replayed.

    A step at batch 1 is hundreds of small kernels, which take longer to launch than to run; a
    graph launches them together. Every token then reads all `max_length` places under a mask, so
    this is for sequences of thousands of tokens, not for long ones under a local pattern. On a CPU
    the same step runs without a recording.

    The recording is used again for prompts of the same number of rows and the same max_length.
    Weights may change in place, but not move.

    Args:
        decoder: a TransformerLM, or the pictures of a DALLE; what other models do in a step
            depends on the position.
        max_length: most tokens that the state will hold, where the decoder has more than those
            of the prompt and the new ones (a text before a picture).

    Example:
        >>> import foveal
        >>> from foveal import patterns as P
        >>> from foveal.generation import Recorded, generate
        >>> model = foveal.TransformerLM(
        ...     num_tokens=256, dim=64, depth=2, max_seq_len=512, pattern=P.SlidingWindow(64)
        ... ).eval()
        >>> tokens, _ = generate(Recorded(model), [[1, 2, 3]], 16, seed=0)
    """

    def __init__(self, decoder: Decoder, max_length: int | None = None) -> None:
        self.decoder, self.max_length = decoder, max_length
        self._sizes: tuple[int, int] | None = None
        self._graph: Any = None
        self._state: Any = None

    @torch.no_grad()
    def prefill(self, tokens: Tensor, max_length: int | None = None) -> tuple[Tensor, Any]:
        """(batch, tokens) -> logits after the last token (batch, num_tokens), state.

        Raises:
            ValueError: max_length is not given, or the model's steps cannot be recorded.
        """
        if not getattr(self.decoder, "recordable", False):
            raise ValueError(
                f"the steps of a {type(self.decoder).__name__} cannot be recorded, for what they "
                "do depends on the position; decode it as it is."
            )
        length = self.max_length or max_length
        if length is None:
            raise ValueError("a recorded step needs max_length, the most tokens to come.")
        logits, state = self.decoder.prefill(tokens, max_length)
        if self._sizes == (len(tokens), length):
            load(self._state, state)
        else:
            self._sizes = None  # until all of it is there
            self._graph = None
            self._state, self._place = fix(state, length, logits.device)
            self._token = tokens.new_zeros(len(tokens))
            if self._records(logits.device):
                self._record(state)
                load(self._state, state)
            self._sizes = (len(tokens), length)
        self._seen, self._length = state.position, length
        return logits, self._state

    @torch.no_grad()
    def step(self, token: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """(batch,), the state that `prefill` gave -> logits after the token, state.

        Raises:
            ValueError: another state, a token of another shape, or more than max_length tokens.
        """
        if self._sizes is None or cache is not self._state:
            raise ValueError("cache must be the state that the latest prefill gave.")
        if token.shape != self._token.shape:
            raise ValueError(
                f"token must be (batch,) = {tuple(self._token.shape)}, got {tuple(token.shape)}."
            )
        if self._seen >= self._length:
            raise ValueError(
                f"the state holds at most max_length={self._length} tokens, got one more; give "
                "prefill a larger max_length."
            )
        self._token.copy_(token)
        self._seen += 1
        if self._graph is None:
            return self._advance(), cache
        self._graph.replay()
        return self._logits.clone(), cache

    @torch.no_grad()
    def extend(self, tokens: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """(batch, count), the state -> logits of all these tokens, state; runs as it is.

        Raises:
            ValueError: another state, or more than max_length tokens.
        """
        if self._sizes is None or cache is not self._state:
            raise ValueError("cache must be the state that the latest prefill gave.")
        if self._seen + tokens.shape[1] > self._length:
            raise ValueError(
                f"the state holds at most max_length={self._length} tokens, got "
                f"{self._seen + tokens.shape[1]}; give prefill a larger max_length."
            )
        logits = self.decoder.extend(tokens, cache)[0]  # type: ignore[attr-defined]
        self._seen += tokens.shape[1]
        self._place += tokens.shape[1]
        return logits, cache

    def _advance(self) -> Tensor:
        logits = self.decoder.step(self._token, self._state)[0]
        self._place += 1
        return logits

    def _records(self, device: torch.device) -> bool:
        return device.type == "cuda"

    def _record(self, state: Any) -> None:
        def advance() -> Tensor:
            load(self._state, state)  # every time at a position that there is
            return self._advance()

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM):
                advance()
        torch.cuda.current_stream().wait_stream(stream)
        load(self._state, state)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = self._advance()
