"""Configuration and named sizes of DALLE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from foveal.layers.checks import check_dropout, check_sizes
from foveal.layers.feed_forward import Activation
from foveal.models.config import ModelConfig, check_range, read_pattern
from foveal.models.dalle.attention_types import ATTN_TYPES, AttnType, paper_schedule
from foveal.patterns import Pattern

PACKAGE = "dalle-pytorch-1.6.6"
"""The public package whose faults `compat` can reproduce."""


@dataclass(frozen=True, kw_only=True)
class DALLEConfig(ModelConfig):
    """Keywords of DALLE.

    Attributes:
        dim: features of a token.
        depth: number of layers, each an attention and a feed-forward.
        num_text_tokens: size of the text vocabulary; 0 is padding. As many tokens as text_seq_len
            are added, a padding of its own for every position.
        text_seq_len: longest text.
        num_image_tokens: size of the image vocabulary; the VAE's.
        image_grid: (height, width) of the image in tokens, or an int; the VAE's.
        heads, dim_head: attention heads and the features of each.
        ff_mult, activation: hidden features of the feed-forwards over dim, and what is between:
            "geglu", "gelu" as in the paper, or "swiglu".
        attn_types: cycled over the layers: "full", "axial_row", "axial_col", "conv_like",
            "sparse", "mlp" (no attention), the paper's "paper_row", "paper_col" and "paper_conv",
            or a pattern. A pattern on an image is meant for the image and reads all of the text.
        kernel_size, dilation: of "conv_like".
        reversible: recompute activations from outputs, so that memory does not grow with depth.
        attn_dropout, ff_dropout: on the output of attention and inside the feed-forward.
        loss_img_weight: weight of the image's loss; the text's is 1.
        stable: scale the gradient of the embedding, and divide by the largest feature at the end.
        sandwich_norm: a LayerNorm after each branch too.
        shift_tokens: take features over from the tokens before, above and to the left.
        rotary_emb: rotary positions; False learns positions of words, rows and columns.
        shared_attn_ids, shared_ff_ids: cycled over the layers; layers with the same id share
            their attention or feed-forward weights.
        share_input_output_emb: use the embeddings as output layer.
        optimize_for_inference: accepted for compatibility; decoding is always cached.
        sparse_attn: True, or one value a layer: "sparse" there, where attn_types says nothing.
        compat: "dalle-pytorch-1.6.6" to reproduce its faults: rotary positions on the values, and
            division by the largest feature even where it is negative.
        vae: family and configuration of the model that turns pictures into tokens, or None.
    """

    dim: int = 512
    depth: int = 8
    num_text_tokens: int = 10_000
    text_seq_len: int = 256
    num_image_tokens: int = 8192
    image_grid: int | tuple[int, int] = 32
    heads: int = 8
    dim_head: int = 64
    ff_mult: float = 4
    activation: Activation = "geglu"
    attn_types: str | Pattern | tuple[AttnType, ...] | None = None
    kernel_size: int = 5
    dilation: int = 1
    reversible: bool = False
    attn_dropout: float = 0.0
    ff_dropout: float = 0.0
    loss_img_weight: float = 7
    stable: bool = False
    sandwich_norm: bool = False
    shift_tokens: bool = True
    rotary_emb: bool = True
    shared_attn_ids: tuple[int, ...] | None = None
    shared_ff_ids: tuple[int, ...] | None = None
    share_input_output_emb: bool = False
    optimize_for_inference: bool = False
    sparse_attn: bool | tuple[bool, ...] = False
    compat: str | None = None
    vae: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        names = ("dim", "num_text_tokens", "text_seq_len", "num_image_tokens", "heads", "dim_head")
        check_sizes(**{name: getattr(self, name) for name in names})
        check_range(0, depth=self.depth, loss_img_weight=self.loss_img_weight)
        check_dropout(self.attn_dropout)
        check_dropout(self.ff_dropout)
        if self.compat not in (None, PACKAGE):
            raise ValueError(f"compat must be None or {PACKAGE!r}, got compat={self.compat!r}.")
        object.__setattr__(self, "attn_types", _read_types(self.attn_types))
        height, width = self.grid
        check_sizes(image_grid_height=height, image_grid_width=width)

    @property
    def grid(self) -> tuple[int, int]:
        """(height, width) of the image in tokens."""
        size = self.image_grid
        return (size, size) if isinstance(size, int) else size

    @property
    def types(self) -> tuple[AttnType, ...]:
        """The attention of each layer."""
        types = self.attn_types
        if types is None:
            sparse = self.sparse_attn
            each = sparse if isinstance(sparse, tuple) else (sparse,)
            types = tuple("sparse" if one and not self.compat else "full" for one in each)
        elif not isinstance(types, tuple):
            types = (types,)
        return tuple(types[i % len(types)] for i in range(self.depth))

    def to_json(self) -> dict[str, Any]:
        """The same in values that JSON knows."""
        vae = None if self.vae is None else dict(self.vae)
        bare = super(DALLEConfig, _without_vae(self)).to_json()
        return {**bare, "vae": vae}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The configuration that `to_json` described."""
        rest = {name: value for name, value in values.items() if name != "vae"}
        config = super().from_json(rest)
        return cls.resolve(config, {"vae": values.get("vae")})


def _without_vae(config: DALLEConfig) -> DALLEConfig:
    return DALLEConfig.resolve(config, {"vae": None})


def _read_types(types: Any) -> Any:
    if isinstance(types, (list, tuple)):
        if not types:
            raise ValueError("attn_types must name at least one type, got none.")
        return tuple(_read_types(one) for one in types)
    if types is None or types in ATTN_TYPES:
        return types
    if isinstance(types, str) and "(" not in types:
        raise ValueError(
            f"attn_types must be of {', '.join(ATTN_TYPES)}, or patterns; got {types!r}."
        )
    return read_pattern(types, "attn_types")


CYCLE = ("full", "axial_row", "axial_col", "conv_like")

SIZES: dict[str, dict[str, Any]] = {
    "dalle": {"attn_types": CYCLE},
    "dalle_tiny": {
        "dim": 128,
        "depth": 4,
        "heads": 4,
        "dim_head": 32,
        "text_seq_len": 32,
        "num_text_tokens": 2048,
        "num_image_tokens": 512,
        "image_grid": 8,
        "attn_types": CYCLE,
    },
    # appendix B.1 of the paper: 64 layers of 62 heads, learned positions, 12 billion parameters
    "dalle_12b": {
        "dim": 3968,
        "depth": 64,
        "heads": 62,
        "num_text_tokens": 16_384,
        "attn_types": paper_schedule(64),
        "activation": "gelu",
        "shift_tokens": False,
        "rotary_emb": False,
    },
    "dalle_small": {
        "dim": 256,
        "depth": 6,
        "heads": 4,
        "text_seq_len": 64,
        "num_text_tokens": 4096,
        "num_image_tokens": 1024,
        "image_grid": 16,
        "attn_types": CYCLE,
    },
}
