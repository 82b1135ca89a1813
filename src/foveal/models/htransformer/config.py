"""Configurations and named sizes of the H-Transformer-1D family."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foveal.layers.feed_forward import Activation
from foveal.models.config import ModelConfig, check_range
from foveal.patterns import Full, Pattern, Pyramid

PACKAGE = "h-transformer-1d-0.1.9"
"""The version of the public package whose mathematics `compat` reproduces."""

BOTH_WAYS, BACKWARD = (-1, 0, 1), (0, 1)


@dataclass(frozen=True, kw_only=True)
class HTransformerConfig(ModelConfig):
    """Keywords of HTransformer1D.

    Attributes:
        num_tokens: size of the vocabulary.
        dim: features of a token.
        depth: number of layers, each attention and feed-forward.
        max_seq_len: longest sequence; not part of the weights.
        causal: read the past only, which makes it a language model.
        heads, dim_head: attention heads and the features of each; dim_head=None is dim / heads.
        ff_mult: hidden features of the feed-forward layers over dim.
        block_size: clusters in a block, see patterns.Pyramid.
        pos_emb: None; accepted for the package's sake, which ignores it.
        reversible: recompute layers in the backward pass (two streams).
        shift_tokens: give every layer parts of its neighbours: the token before when causal,
            both neighbours otherwise; or the shifts themselves, such as (0, 1).
        dropout: on embeddings, attention weights, hidden features and residual branches.
        attention: "pyramid", or "full" for a dense model of the same size to compare with.
        neighbors, queries: see patterns.Pyramid.
        relative_bias: hierarchical relative positions, see layers.HAttention1D.
        rotary: rotary positions on queries and keys.
        kv_heads, activation: as in TransformerLM.
        tie_embeddings: use the embedding as output layer.
        compat: "h-transformer-1d-0.1.9" computes as that package does, faults included.
    """

    num_tokens: int = 256
    dim: int = 512
    depth: int = 6
    max_seq_len: int = 8192
    causal: bool = False
    heads: int = 8
    dim_head: int | None = 64
    ff_mult: float = 4
    block_size: int = 128
    pos_emb: None = None
    reversible: bool = False
    shift_tokens: bool | tuple[int, ...] = False
    dropout: float = 0.0
    attention: str = "pyramid"
    neighbors: str = "adjacent"
    queries: str | None = None
    relative_bias: bool | str = False
    rotary: bool = True
    kv_heads: int | None = None
    activation: Activation = "gelu"
    tie_embeddings: bool = False
    compat: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(0, depth=self.depth)
        if self.pos_emb is not None:
            raise ValueError(
                f"pos_emb must be None, got {type(self.pos_emb).__name__}; positions are rotary, "
                "rotary=False leaves them out."
            )
        if self.attention not in ("pyramid", "full"):
            raise ValueError(f"attention must be 'pyramid' or 'full', got {self.attention!r}.")
        if self.attention == "full" and (self.relative_bias or self.compat):
            raise ValueError(
                "attention='full' has neither relative_bias nor compat, got "
                f"relative_bias={self.relative_bias!r}, compat={self.compat!r}."
            )
        if self.compat not in (None, PACKAGE):
            raise ValueError(f"compat must be None or {PACKAGE!r}, got {self.compat!r}.")
        if not isinstance(self.shift_tokens, bool):
            object.__setattr__(self, "shift_tokens", tuple(self.shift_tokens))
        if self.causal and any(shift < 0 for shift in self.shifts or ()):
            raise ValueError(
                f"shift_tokens must not be negative when causal, got {self.shift_tokens}; use "
                f"{BACKWARD}."
            )

    @property
    def pattern(self) -> Pattern:
        """Who reads whom, in every layer."""
        if self.attention == "full":
            return Full(self.causal)
        return Pyramid(self.block_size, self.causal, self.neighbors, self.queries)

    @property
    def shifts(self) -> tuple[int, ...] | None:
        """The shifts of parts of the features, None for none."""
        if isinstance(self.shift_tokens, tuple):
            return self.shift_tokens
        if not self.shift_tokens:
            return None
        # the package shifts as a decoder would, whatever the model is
        return BACKWARD if self.causal or self.compat else BOTH_WAYS


@dataclass(frozen=True, kw_only=True)
class HTransformerClassifierConfig(HTransformerConfig):
    """Keywords of HTransformerClassifier: those of HTransformer1D, and these.

    Attributes:
        num_classes: size of the answer.
        pool: "cls" reads the answer from a learned token in front, "mean" from the mean of the
            real tokens.
    """

    num_classes: int = 10
    pool: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(1, num_classes=self.num_classes)
        if self.pool not in ("cls", "mean"):
            raise ValueError(f"pool must be 'cls' or 'mean', got {self.pool!r}.")
        if self.causal:
            raise ValueError("causal must be False for a classifier, got causal=True.")


@dataclass(frozen=True, kw_only=True)
class HTransformerSeq2SeqConfig(ModelConfig):
    """Keywords of HTransformerSeq2Seq.

    Attributes:
        num_tokens: size of the vocabulary of the source.
        num_target_tokens: of the target; None = num_tokens.
        enc_depth, dec_depth: layers of the encoder and of the decoder.
        enc_block_size, dec_block_size: clusters in a block; cross-attention has the decoder's.
        max_seq_len: longest source, and longest target.
        Others as in HTransformer1D.
    """

    num_tokens: int = 256
    num_target_tokens: int | None = None
    dim: int = 512
    enc_depth: int = 6
    dec_depth: int = 6
    max_seq_len: int = 8192
    heads: int = 8
    dim_head: int | None = 64
    ff_mult: float = 4
    enc_block_size: int = 16
    dec_block_size: int = 16
    dropout: float = 0.0
    neighbors: str = "adjacent"
    relative_bias: bool | str = False
    activation: Activation = "gelu"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(0, enc_depth=self.enc_depth, dec_depth=self.dec_depth)

    @property
    def target_tokens(self) -> int:
        """Size of the vocabulary of the target."""
        return self.num_tokens if self.num_target_tokens is None else self.num_target_tokens

    def stack(self, causal: bool) -> HTransformerConfig:
        """The configuration of the encoder's or the decoder's layers."""
        return HTransformerConfig(
            dim=self.dim,
            depth=self.dec_depth if causal else self.enc_depth,
            max_seq_len=self.max_seq_len,
            causal=causal,
            heads=self.heads,
            dim_head=self.dim_head,
            ff_mult=self.ff_mult,
            block_size=self.dec_block_size if causal else self.enc_block_size,
            dropout=self.dropout,
            neighbors=self.neighbors,
            relative_bias=self.relative_bias,
            activation=self.activation,
        )


SIZES: dict[str, dict[str, Any]] = {
    # decoders of the authors' language models; the paper's block of 16
    "htransformer_small": {"dim": 256, "depth": 8, "heads": 8, "dim_head": 32},
    "htransformer_base": {"dim": 768, "depth": 12, "heads": 12, "ff_mult": 2048 / 768},
    "htransformer_large": {"dim": 1024, "depth": 24, "heads": 16},
}
for _options in SIZES.values():
    _options |= {"causal": True, "block_size": 16}
