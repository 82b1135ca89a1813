"""What the causal language models share: tokens in, logits out, decoding, generation."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from foveal.caches import DecodingState
from foveal.common.checks import as_int, check_dense
from foveal.generation import Decoder, Recompute, Recorded, Sampler, generate
from foveal.generation.loop import Prompts
from foveal.layers.checks import Device, check_dropout, check_sizes
from foveal.layers.dropout import Dropout
from foveal.layers.linear import linear, project
from foveal.layers.packing import Context, real
from foveal.layers.prepared import (
    Step,
    as_row,
    can_prepare,
    does_something,
    in_order,
    prepared,
    prepared_embedding,
)
from foveal.layers.weights import device_of, table
from foveal.models.base import Model, evaluating
from foveal.models.config import ModelConfig
from foveal.models.losses import losses
from foveal.models.vocabulary import are_ints, check_vocabulary, embedded


class Body(Protocol):
    """What turns embedded tokens into features: a Stack, or a hierarchy of them."""

    def __call__(self, x: Tensor, mask: Tensor | Context | None = None) -> Tensor: ...

    def make_cache(
        self, batch: int, max_length: int | None = None, device: Device = None
    ) -> DecodingState: ...

    def prefill(self, x: Tensor, cache: DecodingState) -> tuple[Tensor, DecodingState]:
        """First tokens (batch, tokens, dim) -> same."""

    def step(self, x: Tensor, cache: DecodingState) -> tuple[Tensor, DecodingState]:
        """One more token (batch, 1, dim) -> same."""

    def extend(self, x: Tensor, cache: DecodingState) -> tuple[Tensor, DecodingState]:
        """Many more tokens (batch, tokens, dim) -> same."""


class CausalLM(Model):
    """A language model: embedding, body, logits.

    A family gives the body; everything else is here. `generate` draws no gradient and leaves the
    training mode as it was; call `eval()` before `prefill` and `step`, which keep dropout as is.

    Args:
        settings: the family's configuration; its num_tokens, dim, max_seq_len, dropout and
            tie_embeddings are read here.
        body: (batch, tokens, dim) -> same.

    Attributes:
        is_causal: whether the model can be decoded a token at a time.
        takes_targets: whether `forward` gives losses where it is given targets.
    """

    is_causal: bool
    takes_targets = True
    pipeline_tag = "text-generation"

    def __init__(
        self,
        settings: ModelConfig,
        body: nn.Module,
        *,
        num_tokens: int,
        dim: int,
        max_seq_len: int,
        dropout: float,
        tie_embeddings: bool,
    ) -> None:
        super().__init__()
        check_sizes(num_tokens=num_tokens, dim=dim, max_seq_len=max_seq_len)
        check_dropout(dropout)
        self.settings = settings
        self.num_tokens, self.max_seq_len, self.dim = num_tokens, max_seq_len, dim
        self.token_emb = nn.Embedding(num_tokens, dim)
        nn.init.normal_(self.token_emb.weight, std=0.02)
        self.emb_dropout = Dropout(dropout)
        self.transformer = body
        self.to_logits = None if tie_embeddings else nn.Linear(dim, num_tokens)

    @property
    def _body(self) -> Body:
        return cast(Body, self.transformer)

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        *,
        targets: Tensor | None = None,
        chunk: int | None = None,
    ) -> Tensor:
        """Logits of every position, or its loss.

        Args:
            tokens: (batch, length) int.
            mask: (batch, length) bool, True = real; what is not real influences nothing real.
            targets: (batch, length) int64, the token after each: asks for losses in nats, 0 where
                a target is -100.
            chunk: of losses, make the logits of so many tokens at a time, in the backward pass
                too: less memory for long sequences. None: of all.

        Returns:
            (batch, length, num_tokens); (batch, length) where targets are given.

        Raises:
            ValueError: shapes that do not fit, more tokens than max_seq_len, or (on a CPU) one
                that the vocabulary does not have.
        """
        if self.sharing is None:
            self._check_tokens(tokens, mask)
            return self._told(self._read(tokens, mask), targets, chunk)
        self._check_tokens(tokens, mask, 0)
        context: Any = self.sharing.of_part(self, tokens.shape[1], mask)
        return self._told(self._read(tokens, context), targets, chunk)

    def _read(self, tokens: Tensor, mask: Tensor | Context | None) -> Tensor:
        """Features (batch, length, dim) of tokens that are checked; mask as in layers."""
        if isinstance(mask, Context):
            with mask.drawing():
                x = self._embed(tokens, mask.first)
        else:
            x = self._embed(tokens)
        if getattr(self.settings, "compat", None) is None:  # packages read padding, NaN and all
            x = only_real(x, real(mask))
        return self._body(x, mask)

    def _told(self, x: Tensor, targets: Tensor | None, chunk: int | None) -> Tensor:
        """Features x (batch, length, dim) as logits, or as losses of targets (batch, length)."""
        return self._logits(x) if targets is None else losses(self._logits, x, targets, chunk)

    # -- decoding ---------------------------------------------------------------------------

    def make_cache(
        self, batch: int, max_length: int | None = None, device: Device = None
    ) -> DecodingState:
        """An empty decoding state for `batch` rows of at most `max_length` tokens."""
        return self._body.make_cache(batch, max_length, device)

    @torch.no_grad()
    def prefill(
        self, tokens: Tensor, max_length: int | None = None, chunk: int | None = None
    ) -> tuple[Tensor, DecodingState]:
        """Read a prompt: tokens (batch, length) -> logits of its last position, decoding state.

        Args:
            max_length: most tokens that will come, prompt included; None lets the state grow.
            chunk: read so many tokens at a time, which bounds the memory; None: all at once.

        Returns:
            logits (batch, num_tokens), and the state that `step` continues.

        Raises:
            ValueError: an empty or too long prompt, or a model that is not causal.
        """
        self._check_tokens(tokens, None)
        cache = self.make_cache(tokens.shape[0], max_length)
        x, cache = in_chunks(self._body, self._embed(tokens), cache, chunk)
        return self._logits(x[:, -1]), cache

    @torch.no_grad()
    def extend(self, tokens: Tensor, cache: DecodingState) -> tuple[Tensor, DecodingState]:
        """Read many more tokens: those of a prompt that goes on, or drafts to be verified.

        Args:
            tokens: (batch, count) int, at least one.
            cache: from `make_cache` (empty), `prefill`, `step` or `extend`; updated in place.

        Returns:
            logits (batch, count, num_tokens) of all these positions, as `forward` gives them, the
            last of which are those of the next token; and the state.

        Raises:
            ValueError: tokens of another shape, or a sequence longer than max_seq_len.
        """
        self._check_tokens(tokens, None)
        if not hasattr(cache, "position"):
            raise TypeError(
                "cache must be the state from make_cache, prefill, step or extend, got "
                f"{type(cache).__name__}."
            )
        self._check_room(cache, tokens.shape[1])
        x, cache = self._body.extend(self._embed(tokens, cache.position), cache)
        return self._logits(x), cache

    @torch.no_grad()
    def step(self, token: Tensor, cache: DecodingState) -> tuple[Tensor, DecodingState]:
        """Read one more token a row: token (batch,) -> logits (batch, num_tokens), state.

        The state is updated in place; continue with the returned one, or `clone()` it before.

        Raises:
            ValueError: a token that is not (batch,), or a sequence longer than max_seq_len.
        """
        if token.ndim != 1:
            raise ValueError(f"token must be (batch,), got shape {tuple(token.shape)}.")
        self._check_room(cache)
        x, cache = self._body.step(self._embed(token[:, None], cache.position), cache)
        return self._logits(x[:, -1]), cache

    def stepper(self, rows: int) -> Step:
        """`step` for many tokens of `rows` rows: quicker, while nothing about the model changes.

        Modules that are attached, exchanged or switched to training afterwards may not be seen;
        weights may change in place.
        """
        make = getattr(self._body, "stepper", None)
        if type(self).step is not CausalLM.step or make is None or not can_prepare():
            return self.step
        body, embed, logits = make(rows), self._embedder(), self._projector(rows)

        @torch.no_grad()
        def step(token: Tensor, cache: DecodingState) -> tuple[Tensor, DecodingState]:
            self._check_room(cache)
            x, cache = body(embed(token[:, None], cache.position), cache)
            return logits(x), cache

        return step

    def _check_room(self, cache: DecodingState, count: int = 1) -> None:
        if cache.position + count > self.max_seq_len:
            more = "one more token" if count == 1 else f"{count} more tokens"
            raise ValueError(
                f"the sequence must fit into max_seq_len={self.max_seq_len}, got {more} "
                f"at position {cache.position}."
            )

    def generate(
        self,
        prompt: Prompts,
        n: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        stop: int | Collection[int] | None = None,
        seed: int | None = None,
        use_cache: bool = True,
        recorded: bool = False,
        lengths: Tensor | Sequence[int] | None = None,
        pad: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Continue prompts by up to n tokens.

        Args:
            prompt: (batch, length) int tokens, or a list of 1-D prompts of any lengths.
            n: most new tokens a row.
            temperature, top_k, top_p, min_p: see foveal.generation.Sampler; temperature=0 takes
                the likeliest token.
            stop: token or tokens that end a row; the stop token is kept, `pad` follows.
            seed: makes the draws repeatable.
            use_cache: False runs the whole sequence again for every token.
            recorded: decode by one recorded step, on a GPU a CUDA graph: see
                foveal.generation.Recorded.
            lengths: (batch,) real tokens at the front of each row of a rectangular prompt.
            pad: fills rows after their end.
            progress: called with 1 after each position that is filled.

        Returns:
            (batch, longest prompt + n): each row its prompt, its new tokens, then padding.
            foveal.generation.generate(model, ...) returns the lengths of the rows as well.

        Raises:
            ValueError: an empty prompt, tokens outside the vocabulary, a sequence longer than
                max_seq_len, nonsense among the sampling options, or a recorded step of a model
                that has none.
        """
        self._check_vocabulary(prompt)
        sampler = Sampler(temperature, top_k, top_p, min_p, seed)
        decoder: Decoder = self if use_cache else Recompute(self)
        with evaluating(self):
            tokens, _ = generate(
                Recorded(decoder) if recorded else decoder,
                prompt,
                n,
                sampler=sampler,
                lengths=lengths,
                stop=stop,
                pad=pad,
                max_seq_len=self.max_seq_len,
                device=device_of(self.token_emb),
                progress=progress,
            )
        return tokens

    # -- parts ------------------------------------------------------------------------------

    def _embed(self, tokens: Tensor, offset: int = 0) -> Tensor:
        """Tokens (batch, length) at positions from `offset` on -> (batch, length, dim)."""
        x = embedded(self.token_emb, tokens, self.num_tokens)
        return self.emb_dropout(self._placed(x, offset))

    def _placed(self, x: Tensor, offset: int) -> Tensor:
        """Embedded tokens (batch, length, dim), told the positions from `offset` on."""
        return x

    def _embedder(self) -> Callable[[Tensor, int], Tensor]:
        """`_embed`, prepared."""
        if type(self)._embed is not CausalLM._embed or does_something(self.emb_dropout):
            return self._embed
        look_up = prepared_embedding(self.token_emb)
        num = self.num_tokens
        return lambda token, offset: self._placed(embedded(look_up, token, num), offset)

    def _projector(self, rows: int) -> Callable[[Tensor], Tensor]:
        """`_logits` of x (rows, 1, dim), prepared."""
        if type(self)._logits is not CausalLM._logits or self.to_logits is None:
            return lambda x: self._logits(x[:, -1])
        product = in_order(prepared(self.to_logits, rows))
        return lambda x: product(as_row(x)).view(rows, -1)

    def _logits(self, x: Tensor) -> Tensor:
        if self.to_logits is None:
            return linear(x, table(self.token_emb, 0, self.num_tokens))
        return project(self.to_logits, x)

    def _check_tokens(self, tokens: Tensor, mask: Tensor | None, least: int = 1) -> None:
        check_tokens(tokens, mask, self.max_seq_len, least=least)

    def _check_vocabulary(self, prompt: Prompts) -> None:
        check_vocabulary(prompt, self.num_tokens)


def in_chunks(
    body: Any, x: Tensor, cache: DecodingState, chunk: int | None, *memory: Tensor | None
) -> tuple[Tensor, DecodingState]:
    """First tokens x (batch, tokens, dim) through a body, some after the other: the features of
    the last ones, and the state.

    Raises:
        ValueError: chunk is not a positive int, or None.
    """
    size = x.shape[1] if chunk is None else as_int("chunk", chunk, 1)
    first, *rest = x.split(size, 1)
    y, cache = body.prefill(first, cache, *memory)
    for part in rest:
        y, cache = body.extend(part, cache)
    return y, cache


def only_real(x: Tensor, mask: Tensor | None) -> Tensor:
    """x (batch, tokens, dim) with zeros where the mask (batch, tokens) says nothing is real.

    What stands there may be anything, even NaN, and must reach no output and no gradient.
    """
    return x if mask is None else x.masked_fill(~mask[..., None], 0.0)


def check_tokens(
    tokens: Tensor,
    mask: Tensor | None,
    max_seq_len: int,
    name: str = "tokens",
    least: int = 1,
) -> None:
    """Raise ValueError unless tokens (batch, length) and their mask are fit for a model.

    least: fewest tokens; 0 of a part of a sequence.
    """
    if torch.compiler.is_compiling():
        return
    if not isinstance(tokens, Tensor):
        raise TypeError(f"{name} must be a tensor (batch, length), got {type(tokens).__name__}.")
    check_dense(name, tokens)
    check_dense("mask", mask)
    if tokens.ndim != 2 or not are_ints(tokens) or tokens.shape[1] < least:
        raise ValueError(
            f"{name} must be (batch, length) of an int type with at least one token, got "
            f"shape {tuple(tokens.shape)} of {tokens.dtype}."
        )
    if tokens.shape[1] > max_seq_len:
        raise ValueError(
            f"{name} must fit into max_seq_len={max_seq_len}, got a length of "
            f"{tokens.shape[1]}; cut the sequence or build the model with a larger "
            "max_seq_len."
        )
    if mask is not None and (mask.shape != tokens.shape or mask.dtype != torch.bool):
        raise ValueError(
            f"mask must be bool of the shape of {name} {tuple(tokens.shape)}, True = real; "
            f"got shape {tuple(mask.shape)} of {mask.dtype}."
        )
