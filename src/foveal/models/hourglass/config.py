"""Configuration and named sizes of HourglassTransformerLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from foveal.layers.feed_forward import Activation
from foveal.models.config import ModelConfig, check_range, read_pattern
from foveal.patterns import Full, Pattern

Depth = int | Sequence[Any]
"""A number of blocks, or (before, inner depth, after)."""

SampleType = Literal["naive", "linear"]

StagePatterns = Pattern | Sequence[Pattern | Sequence[Pattern]] | None


@dataclass(frozen=True, kw_only=True)
class HourglassConfig(ModelConfig):
    """Keywords of HourglassTransformerLM.

    Attributes:
        num_tokens: size of the vocabulary; 256 for bytes.
        dim: features of a token, the same in all stages.
        max_seq_len: longest sequence.
        depth: (blocks before, inner, blocks after); inner is a number of blocks or again such a
            triple. A plain number of blocks is a transformer without stages.
        shorten_factor: tokens that become one in the next stage; one int for every stage, or one
            for each, outermost first.
        heads, dim_head, kv_heads: as in TransformerConfig.
        attn_resampling: attention between the fine and the coarse sequence when shortening and
            when expanding, in addition to updown_sample_type.
        updown_sample_type: "naive" (mean of a group, repeat) or "linear" (projections).
        causal: read the past only; False makes an encoder that cannot be decoded.
        pattern: who reads whom; one for all stages, or a list with an entry for each stage,
            outermost first, whose last entry also serves deeper stages; an entry may be a list
            that is cycled over the blocks of a stack. None = Full(causal).
        ff_mult, activation, dropout, tie_embeddings, rotary: as in TransformerConfig.
    """

    num_tokens: int = 256
    dim: int = 512
    max_seq_len: int = 1024
    depth: Depth = (4, 2, 4)
    shorten_factor: int | Sequence[int] = 2
    heads: int = 8
    dim_head: int | None = 64
    kv_heads: int | None = None
    attn_resampling: bool = True
    updown_sample_type: SampleType = "naive"
    causal: bool = True
    pattern: StagePatterns = None
    ff_mult: float = 4
    activation: Activation = "gelu"
    dropout: float = 0.0
    tie_embeddings: bool = False
    rotary: bool = True

    def __post_init__(self) -> None:
        if self.pattern is not None:
            object.__setattr__(self, "pattern", read_pattern(self.pattern))
        if self.updown_sample_type not in get_args(SampleType):
            raise ValueError(
                "updown_sample_type must be 'naive' (mean and repeat) or 'linear', got "
                f"updown_sample_type={self.updown_sample_type!r}."
            )
        self.factors  # noqa: B018 - reading them checks them
        for stage in range(self.num_stages + 1):
            if self.causal and not all(one.is_causal for one in self.stage_patterns(stage)):
                raise ValueError(
                    f"pattern must be causal in every stage while causal=True, got "
                    f"pattern={self.pattern!r}."
                )

    @property
    def num_stages(self) -> int:
        """How many times the sequence is shortened."""
        return _nesting(self.depth)

    @property
    def factors(self) -> tuple[int, ...]:
        """Shorten factor of each stage, outermost first."""
        given = self.shorten_factor
        factors = (given,) * self.num_stages if isinstance(given, int) else tuple(given)
        if len(factors) != self.num_stages or any(not isinstance(f, int) for f in factors):
            raise ValueError(
                f"shorten_factor must be an int or one int for each of the {self.num_stages} "
                f"stages of depth={self.depth!r}, got shorten_factor={given!r}."
            )
        for factor in factors:
            check_range(1, shorten_factor=factor)
        return factors

    def depth_of(self, stage: int) -> Any:
        """The depth from a stage inwards: a triple, or the blocks of the innermost stage."""
        depth: Any = self.depth
        for _ in range(stage):
            depth = depth[1]
        return depth

    def stage_patterns(self, stage: int) -> tuple[Pattern, ...]:
        """Patterns of the stacks of a stage, cycled over their blocks; 0 is the outermost."""
        if self.pattern is None:
            return (Full(causal=self.causal),)
        several = (self.pattern,) if isinstance(self.pattern, Pattern) else self.pattern
        chosen = several[min(stage, len(several) - 1)]
        return (chosen,) if isinstance(chosen, Pattern) else tuple(chosen)


def _nesting(depth: Depth) -> int:
    """Levels of nesting of a depth, checked."""
    if isinstance(depth, int):
        check_range(0, depth=depth)
        return 0
    if len(depth) != 3 or not isinstance(depth[0], int) or not isinstance(depth[2], int):
        raise ValueError(
            "depth must be an int or (blocks before, inner depth, blocks after), got "
            f"depth={depth!r}; for example (2, (2, 4, 2), 2)."
        )
    check_range(0, depth=min(depth[0], depth[2]))
    return 1 + _nesting(depth[1])


SIZES: dict[str, dict[str, Any]] = {
    "hourglass": {},
    "hourglass_tiny": {
        "dim": 128,
        "depth": (1, 2, 1),
        "shorten_factor": 3,
        "heads": 2,
        "max_seq_len": 512,
        "attn_resampling": False,
    },
    "hourglass_small": {
        "dim": 256,
        "depth": (2, 4, 2),
        "shorten_factor": 3,
        "heads": 4,
        "attn_resampling": False,
    },
}
