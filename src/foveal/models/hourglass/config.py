"""Configuration and named sizes of HourglassTransformerLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from foveal.common.checks import as_int
from foveal.layers.feed_forward import Activation
from foveal.models.config import ModelConfig, check_range, read_pattern
from foveal.models.hourglass.hierarchy import parse_hierarchy
from foveal.patterns import Full, Pattern

Depth = int | Sequence[Any]
"""A number of blocks, or (before, inner depth, after)."""

SampleType = Literal["naive", "linear"]
Shortening = Literal["average", "linear", "attention-average", "attention-linear"]
Upsampling = Literal[
    "repeat", "linear", "attention-repeat", "attention-linear", "attention-identity"
]
Positions = Literal["rotary", "relative", "absolute", "none"]
Norms = Literal["authors", "pre", "single"]

PACKAGE = "hourglass-transformer-pytorch-0.0.6"
"""The one public package whose mathematics `compat` can name."""

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
            for each, outermost first; None = 2.
        hierarchy: depth and shorten_factor in the paper's notation, "2@1 1@2 4@4 1@2 2@1";
            it takes the place of both.
        heads, dim_head, kv_heads: as in TransformerConfig.
        attn_resampling: attention between the fine and the coarse sequence when shortening and
            when expanding, in addition to updown_sample_type.
        updown_sample_type: "naive" (mean of a group, repeat) or "linear" (projections).
        shortening: "average", "linear", or attention whose queries are one of them
            ("attention-average", "attention-linear"). None follows the two keywords above.
        upsampling: "repeat", "linear", or attention of queries x + repeated ("attention-repeat"),
            x + projected ("attention-linear") or x alone ("attention-identity"). None follows
            the same keywords.
        factor_choices: shorten-factor dropout: factors of which training draws one for each
            forward pass; one list for every stage, or a list for each. Not with projections.
        causal: read the past only; False makes an encoder that cannot be decoded.
        pattern: who reads whom; one for all stages, or a list with an entry for each stage,
            outermost first, whose last entry also serves deeper stages; an entry may be a list
            that is cycled over the blocks of a stack. None = Full(causal).
        ff_mult, activation, dropout, tie_embeddings, rotary: as in TransformerConfig.
        positions: "rotary"; "relative", the paper's Transformer-XL attention; "absolute", learned
            ones added to the tokens; or "none". None follows `rotary`.
        norms: where LayerNorms stand. "authors": after every stack and every upsampling, and on
            what is resampled by attention; "pre": the same, but attention that resamples is
            an ordinary pre-norm block (models saved before 0.1); "single": pre-norm blocks and one
            LayerNorm at the end (hourglass-transformer-pytorch).
        compat: None, or "hourglass-transformer-pytorch-0.0.6" to compute as that package does,
            faults included. See foveal.compat.hourglass_transformer_pytorch.
    """

    num_tokens: int = 256
    dim: int = 512
    max_seq_len: int = 1024
    depth: Depth = (4, 2, 4)
    shorten_factor: int | Sequence[int] | None = None
    hierarchy: str | None = None
    heads: int = 8
    dim_head: int | None = 64
    kv_heads: int | None = None
    attn_resampling: bool = True
    updown_sample_type: SampleType = "naive"
    shortening: Shortening | None = None
    upsampling: Upsampling | None = None
    factor_choices: Sequence[Any] = ()
    causal: bool = True
    pattern: StagePatterns = None
    ff_mult: float = 4
    activation: Activation = "gelu"
    dropout: float = 0.0
    tie_embeddings: bool = False
    rotary: bool = True
    positions: Positions | None = None
    norms: Norms = "authors"
    compat: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern is not None:
            object.__setattr__(self, "pattern", read_pattern(self.pattern))
        object.__setattr__(self, "depth", _read_depth(self.depth))
        if self.hierarchy is not None:
            self._read_hierarchy(self.hierarchy)
        if self.compat not in (None, PACKAGE):
            raise ValueError(f"compat must be None or {PACKAGE!r}, got compat={self.compat!r}.")
        self.factors, self.choices  # noqa: B018 - reading them checks them
        for stage in range(self.num_stages + 1):
            if self.causal and not all(one.is_causal for one in self.stage_patterns(stage)):
                raise ValueError(
                    f"pattern must be causal in every stage while causal=True, got "
                    f"pattern={self.pattern!r}."
                )

    def _read_hierarchy(self, text: str) -> None:
        depth, factors = parse_hierarchy(text)
        default = HourglassConfig.__dataclass_fields__["depth"].default
        given = self.shorten_factor
        if _tuples(self.depth) not in (default, depth) or (
            given is not None and factors and _tuples(given) not in (factors, factors[0])
        ):
            raise ValueError(
                f"hierarchy says depth={depth} and shorten_factor={factors}, got "
                f"hierarchy={text!r} beside depth={self.depth!r}, shorten_factor={given!r}; give "
                "one or the other."
            )
        object.__setattr__(self, "depth", depth)
        object.__setattr__(self, "shorten_factor", factors or None)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The configuration that `to_json` described; the first files knew no `norms`."""
        return super().from_json({"norms": "pre", **values})

    @property
    def shorten_kind(self) -> tuple[str, bool]:
        """("average" or "linear", whether attention is added)."""
        if self.shortening is None:
            return ("linear" if self._linear else "average"), self.attn_resampling
        kind = self.shortening.removeprefix("attention-")
        return kind, kind != self.shortening

    @property
    def upsample_kind(self) -> tuple[str, bool]:
        """("repeat", "linear" or "identity", whether attention is added)."""
        if self.upsampling is None:
            return ("linear" if self._linear else "repeat"), self.attn_resampling
        kind = self.upsampling.removeprefix("attention-")
        return kind, kind != self.upsampling

    @property
    def _linear(self) -> bool:
        return self.updown_sample_type == "linear"

    @property
    def position_kind(self) -> str:
        """How tokens know their positions."""
        return self.positions or ("rotary" if self.rotary else "none")

    @property
    def choices(self) -> tuple[tuple[int, ...], ...]:
        """Factors that training draws from, for each stage; empty without factor dropout."""
        if not self.factor_choices or not self.num_stages:
            return ()
        several = _tuples(self.factor_choices)
        if all(isinstance(one, int) for one in several):
            several = (several,) * self.num_stages
        if len(several) != self.num_stages or not all(
            isinstance(one, tuple) and one and all(isinstance(f, int) and f > 0 for f in one)
            for one in several
        ):
            raise ValueError(
                "factor_choices must list factors, or a list of them for each of the "
                f"{self.num_stages} stages, got factor_choices={self.factor_choices!r}."
            )
        self.check_flexible("factor_choices")
        return several

    def check_flexible(self, name: str) -> None:
        """Raise ValueError where projections tie the model to its shorten factors."""
        if "linear" in (self.shorten_kind[0], self.upsample_kind[0]):
            raise ValueError(
                f"{name} needs resampling without projections, got shortening by "
                f"{self.shorten_kind[0]!r} and upsampling by {self.upsample_kind[0]!r}; use means "
                "and repeats, with or without attention."
            )

    @property
    def num_stages(self) -> int:
        """How many times the sequence is shortened."""
        return _nesting(self.depth)

    @property
    def factors(self) -> tuple[int, ...]:
        """Shorten factor of each stage, outermost first."""
        return self.factors_from(2 if self.shorten_factor is None else self.shorten_factor)

    def factors_from(self, given: int | Sequence[int]) -> tuple[int, ...]:
        """One factor for each stage, from an int for all or one for each.

        Raises:
            ValueError: the number of stages differs, or a factor is no positive int.
        """
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


def _read_depth(depth: Any) -> Any:
    """A depth with Python's ints and tuples, from those of other libraries."""
    if isinstance(depth, list | tuple):
        return tuple(map(_read_depth, depth))
    return as_int("depth", depth, 0)


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


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


_PAPER: dict[str, Any] = {
    "shortening": "attention-average",
    "upsampling": "attention-linear",
    "positions": "relative",
    "dim_head": None,
    "rotary": False,
}

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
    # section 4 of the paper
    "hourglass_enwik8": {
        **_PAPER,
        "hierarchy": "4@1 8@3 4@1",
        "dim": 768,
        "max_seq_len": 4096,
        "dropout": 0.15,
    },
    "hourglass_imagenet32": {
        **_PAPER,
        "hierarchy": "3@1 24@3 3@1",
        "max_seq_len": 3072,
        "dropout": 0.01,
    },
    "hourglass_cifar10": {
        **_PAPER,
        "hierarchy": "1@1 8@3 1@1",
        "upsampling": "attention-identity",
        "max_seq_len": 3072,
    },
}
