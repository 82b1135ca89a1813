"""HTransformerSeq2Seq: an encoder of a source and a decoder of a target."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from foveal.caches import DecodingState
from foveal.generation import Recompute, Sampler, generate
from foveal.layers.checks import Device, check_dropout, check_sizes
from foveal.layers.dropout import Dropout
from foveal.layers.linear import project
from foveal.layers.weights import device_of
from foveal.models.base import Model, evaluating
from foveal.models.causal import check_tokens, in_chunks, only_real
from foveal.models.htransformer.config import HTransformerSeq2SeqConfig
from foveal.models.htransformer.stack import make_stack
from foveal.models.registry import register
from foveal.models.vocabulary import check_vocabulary, embedded


@register(
    {"htransformer_seq2seq_base": {"dim": 768, "enc_depth": 12, "dec_depth": 12, "heads": 12}}
)
class HTransformerSeq2Seq(Model):
    """Encoder and decoder over hierarchical attention, also between the two.

    Args:
        config: an HTransformerSeq2SeqConfig; or give its keywords: num_tokens=256,
            num_target_tokens=None, dim=512, enc_depth=6, dec_depth=6, max_seq_len=8192, heads=8,
            dim_head=64, ff_mult=4, enc_block_size=16, dec_block_size=16, dropout=0., ...

    Raises:
        ValueError: an unknown keyword or sizes that do not fit.

    Differs from the paper in: rotary positions; a query for each token of the target.

    Example:
        >>> import torch
        >>> from foveal.models import HTransformerSeq2Seq
        >>> sizes = dict(dim=32, enc_depth=1, dec_depth=1, heads=2, dim_head=16)
        >>> model = HTransformerSeq2Seq(**sizes, num_target_tokens=7)
        >>> source, target = torch.zeros(1, 100).long(), torch.zeros(1, 30).long()
        >>> model(source, target).shape
        torch.Size([1, 30, 7])
    """

    family = "htransformer_seq2seq"
    config_class = HTransformerSeq2SeqConfig
    settings: HTransformerSeq2SeqConfig
    is_causal = True

    def __init__(self, config: HTransformerSeq2SeqConfig | None = None, /, **options: Any) -> None:
        super().__init__()
        c = HTransformerSeq2SeqConfig.resolve(config, options)
        check_sizes(
            num_tokens=c.num_tokens,
            num_target_tokens=c.target_tokens,
            dim=c.dim,
            max_seq_len=c.max_seq_len,
        )
        check_dropout(c.dropout)
        self.settings, self.max_seq_len = c, c.max_seq_len
        self.source_emb = nn.Embedding(c.num_tokens, c.dim)
        self.target_emb = nn.Embedding(c.target_tokens, c.dim)
        for table in (self.source_emb, self.target_emb):
            nn.init.normal_(table.weight, std=0.02)
        self.emb_dropout = Dropout(c.dropout)
        self.encoder = make_stack(c.stack(causal=False))
        self.decoder = make_stack(c.stack(causal=True), cross=True)
        self.to_logits = nn.Linear(c.dim, c.target_tokens)

    def forward(
        self,
        source: Tensor,
        target: Tensor,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits of the token after each one of the target.

        Args:
            source: (batch, source length) int.
            target: (batch, length) int.
            source_mask, target_mask: bool of the same shapes, True = real.

        Returns:
            (batch, length, num_target_tokens)

        Raises:
            ValueError: shapes that do not fit, or more tokens than max_seq_len.
        """
        check_tokens(target, target_mask, self.max_seq_len, "target")
        memory = self.encode(source, source_mask)
        x = self._embed(target)
        return project(
            self.to_logits,
            self.decoder(only_real(x, target_mask), target_mask, memory, source_mask),
        )

    def encode(self, source: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features of a source: (batch, length) int -> (batch, length, dim)."""
        check_tokens(source, mask, self.max_seq_len, "source")
        x = embedded(self.source_emb, source, self.settings.num_tokens, "source")
        x = self.emb_dropout(x)
        return self.encoder(only_real(x, mask), mask)

    def _embed(self, target: Tensor, name: str = "target") -> Tensor:
        """Tokens of the target (batch, length) -> (batch, length, dim)."""
        return self.emb_dropout(
            embedded(self.target_emb, target, self.settings.target_tokens, name)
        )

    # -- decoding ---------------------------------------------------------------------------

    def make_cache(
        self, batch: int, max_length: int | None = None, device: Device = None
    ) -> DecodingState:
        """A decoding state that `prefill` fills with a source and the first tokens."""
        length = self.max_seq_len if max_length is None else max_length
        return self.decoder.make_cache(batch, length, device)

    @torch.no_grad()
    def prefill(
        self,
        source: Tensor,
        target: Tensor,
        source_mask: Tensor | None = None,
        max_length: int | None = None,
        chunk: int | None = None,
    ) -> tuple[Tensor, DecodingState]:
        """Read a source and the first tokens of a target.

        Args:
            source, source_mask: (batch, source length) int and bool, as in `forward`.
            target: (batch, length) int.
            max_length: most tokens of the target that will come; max_seq_len when None.
            chunk: read so many tokens of the target at a time; None: all at once.

        Returns:
            logits (batch, num_target_tokens) after the last token, and the state that `step`
            continues.
        """
        check_tokens(target, None, self.max_seq_len, "target")
        memory = self.encode(source, source_mask)
        cache = self.make_cache(len(target), max_length)
        x = self._embed(target)
        x, cache = in_chunks(self.decoder, x, cache, chunk, memory, source_mask)
        return project(self.to_logits, x[:, -1]), cache

    @torch.no_grad()
    def extend(self, tokens: Tensor, cache: DecodingState) -> tuple[Tensor, DecodingState]:
        """Read many more tokens of the target: (batch, count) -> logits (batch, count,
        num_target_tokens) of all these positions, state.

        Raises:
            ValueError: tokens of another shape, or a target longer than its max_length.
        """
        check_tokens(tokens, None, self.max_seq_len)
        x = self._embed(tokens, "tokens")
        x, cache = self.decoder.extend(x, cache)
        return project(self.to_logits, x), cache

    @torch.no_grad()
    def step(self, token: Tensor, cache: DecodingState) -> tuple[Tensor, DecodingState]:
        """Read one more token a row: token (batch,) -> logits (batch, num_target_tokens), state.

        Raises:
            ValueError: a token that is not (batch,), or a target longer than its max_length.
        """
        if token.ndim != 1:
            raise ValueError(f"token must be (batch,), got shape {tuple(token.shape)}.")
        x = self._embed(token[:, None], "token")
        x, cache = self.decoder.step(x, cache)
        return project(self.to_logits, x[:, -1]), cache

    def generate(
        self,
        source: Tensor,
        prompt: Tensor,
        n: int,
        *,
        source_mask: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        stop: int | Collection[int] | None = None,
        seed: int | None = None,
        use_cache: bool = True,
        pad: int = 0,
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Continue the targets of sources by up to n tokens.

        Args:
            source, source_mask: as in `forward`.
            prompt: (batch, length) first tokens of each target, such as a start token.
            Others as in `TransformerLM.generate`.

        Returns:
            (batch, length + n): each row its prompt, its new tokens, then padding.
        """
        check_vocabulary(prompt, self.settings.target_tokens)
        decoder = (
            _Conditioned(self, source, source_mask)
            if use_cache
            else Recompute(lambda target: self(source, target, source_mask))
        )
        with evaluating(self):
            tokens, _ = generate(
                decoder,
                prompt,
                n,
                sampler=Sampler(temperature, top_k, top_p, min_p, seed),
                stop=stop,
                pad=pad,
                max_seq_len=self.max_seq_len,
                device=device_of(self.target_emb),
                progress=progress,
            )
        return tokens

    def example_inputs(self, length: int | None = None) -> tuple[Tensor, ...]:
        """A source and a target of as many tokens, without values."""
        return super().example_inputs(length) * 2


class _Conditioned(NamedTuple):
    """A model and the sources of the batch, as the generate loop wants it."""

    model: HTransformerSeq2Seq
    source: Tensor
    source_mask: Tensor | None

    def prefill(self, tokens: Tensor, max_length: int | None = None) -> tuple[Tensor, Any]:
        return self.model.prefill(self.source, tokens, self.source_mask, max_length)

    def step(self, token: Tensor, cache: Any) -> tuple[Tensor, Any]:
        return self.model.step(token, cache)
