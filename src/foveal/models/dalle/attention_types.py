"""The kinds of attention a layer of DALLE may have, and the schedule of the paper."""

from __future__ import annotations

import math

from foveal.common.meta import with_values
from foveal.patterns import Axial, BlockSparse, Full, Neighborhood, Pattern, TextImage
from foveal.patterns.image import GridPattern

AttnType = str | Pattern

PAPER_KERNEL = 11
"""Window of the paper's convolutional attention."""

ATTN_TYPES = (
    "full",
    "axial_row",
    "axial_col",
    "conv_like",
    "sparse",
    "mlp",
    "paper_row",
    "paper_col",
    "paper_conv",
)


def paper_schedule(depth: int = 64) -> tuple[str, ...]:
    """The attention of each layer in the paper: row, column, row, row, ..., and conv at the end.

    Ramesh et al., "Zero-Shot Text-to-Image Generation" (2021), appendix B.1: the second of every
    four layers reads columns, the last layer of all a convolutional window, the others rows.
    """
    types = ["paper_col" if i % 4 == 1 else "paper_row" for i in range(depth)]
    return (*types[:-1], "paper_conv") if types else ()


def pattern_of(
    kind: AttnType,
    text_length: int,
    grid: tuple[int, int],
    *,
    causal: bool = True,
    kernel_size: int = 5,
    dilation: int = 1,
    seed: int = 0,
) -> Pattern | None:
    """The pattern over text and image that a kind of attention names; None for "mlp".

    Args:
        kind: one of ATTN_TYPES, or a pattern: of the whole sequence, or of the image alone.
        text_length: tokens of the text, the start token included.
        grid: (height, width) of the image in tokens.
        causal: False reads later tokens too, which the kinds of the paper do not.
        kernel_size, dilation: of "conv_like".
        seed: of the random blocks of "sparse".

    Raises:
        ValueError: an unknown kind.
    """
    if isinstance(kind, GridPattern) and kind.grid is not None:
        return TextImage(text_length, kind, causal_text=causal)
    if isinstance(kind, Pattern):
        return kind
    if kind == "mlp":
        return None
    if kind == "full":
        return Full(causal)
    if kind == "sparse":
        return block_sparse(text_length - 1, text_length + math.prod(grid) - 1, causal, seed)
    corner = "corner" if causal else None
    images: dict[str, Pattern] = {
        "axial_row": Axial(grid, "row", causal=causal),
        "axial_col": Axial(grid, "column", causal=causal),
        "conv_like": Neighborhood(grid, kernel_size, dilation, causal=corner),  # type: ignore[arg-type]
        "paper_row": Axial(grid, "row", causal=True, wrap=True),
        "paper_col": Axial(grid, "column", causal=True),
        "paper_conv": Neighborhood(grid, PAPER_KERNEL, causal="raster", border="wrap"),
    }
    if kind not in images:
        raise ValueError(
            f"attn_types must be of {', '.join(ATTN_TYPES)}, or patterns; got {kind!r}."
        )
    return TextImage(text_length, images[kind], causal_text=causal)


def block_sparse(
    text_seq_len: int,
    seq_len: int,
    causal: bool = True,
    seed: int = 0,
    block_size: int = 16,
    num_random_blocks: int | None = None,
) -> BlockSparse:
    """DALLE-pytorch's choice among DeepSpeed's layouts; None = a quarter of the blocks at random.

    Args:
        text_seq_len, seq_len: words, and all tokens, without the start token.
    """
    if num_random_blocks is None:
        num_random_blocks = seq_len // block_size // 4
    with with_values():
        return BlockSparse.variable(
            seq_len + 1,
            block_size,
            num_random_blocks=num_random_blocks,
            global_block_indices=range(math.ceil(text_seq_len / block_size)),
            attention="unidirectional" if causal else "bidirectional",
            seed=seed,
        )
