"""Configuration and named sizes of TransformerLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from foveal.common.words import suggest
from foveal.layers.feed_forward import Activation
from foveal.models.config import ModelConfig, PatternChoice, check_range, read_pattern
from foveal.ops.checks import as_softcap
from foveal.patterns import Full, Pattern

Positions = Literal["rotary", "alibi", "t5", "none"]
POSITIONS: tuple[Positions, ...] = ("rotary", "alibi", "t5", "none")


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(ModelConfig):
    """Keywords of TransformerLM.

    Attributes:
        num_tokens: size of the vocabulary; 256 for bytes.
        dim: features of a token.
        depth: number of blocks.
        max_seq_len: longest sequence.
        heads, dim_head: attention heads and the features of each; dim_head=None is dim / heads.
        pattern: who reads whom; a list is cycled over the blocks. Text such as
            "SlidingWindow(256)" is read as a pattern.
        kv_heads: key and value heads, shared by groups of queries; None = heads.
        ff_mult, activation: of the feed-forward layers.
        dropout: on embeddings, attention weights, hidden features and residual branches.
        tie_embeddings: use the embedding as output layer.
        rotary: rotary positions; without them order is seen through the pattern only.
        positions: "rotary"; "alibi", logits that lose a slope times the distance (Press et al.
            2022); "t5", a learned table of 32 buckets of distances that all layers share (Raffel
            et al. 2020); "none". None goes by `rotary`.
        softcap: bound of the attention logits, as in Gemma 2; None = none.
        sinks: learn an attention sink a head and layer, as in gpt-oss.

    Raises:
        ValueError: a size is negative, positions is no such word, or softcap no positive number.
    """

    num_tokens: int = 256
    dim: int = 512
    depth: int = 6
    max_seq_len: int = 1024
    heads: int = 8
    dim_head: int | None = 64
    pattern: PatternChoice = Full(causal=True)  # noqa: RUF009 - patterns are frozen
    kv_heads: int | None = None
    ff_mult: float = 4
    activation: Activation = "gelu"
    dropout: float = 0.0
    tie_embeddings: bool = False
    rotary: bool = True
    positions: Positions | None = None
    softcap: float | None = None
    sinks: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "pattern", read_pattern(self.pattern))
        check_range(0, depth=self.depth)
        if self.positions not in (None, *POSITIONS):
            hint = suggest(str(self.positions), POSITIONS, "")
            raise ValueError(
                f"positions must be one of {', '.join(POSITIONS)} or None, got "
                f"positions={self.positions!r}. {hint}".strip()
            )
        as_softcap(self.softcap)

    @property
    def knows_places_by(self) -> Positions:
        """How tokens know their positions."""
        return self.positions or ("rotary" if self.rotary else "none")

    @property
    def patterns(self) -> tuple[Pattern, ...]:
        """Patterns to cycle over the blocks."""
        return (self.pattern,) if isinstance(self.pattern, Pattern) else tuple(self.pattern)


SIZES: dict[str, dict[str, Any]] = {
    "transformer": {},
    "transformer_tiny": {"dim": 128, "depth": 4, "heads": 2, "max_seq_len": 512},
    "transformer_small": {"dim": 256, "depth": 6, "heads": 4},
}
