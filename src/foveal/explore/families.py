"""What the page offers: kinds of patterns, and the values of their options."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from foveal.draw.patterns import natural_length
from foveal.patterns import Pattern, serialize

SEQUENCES = ("256", "64")
BOTH = ("True", "False")
IMAGE = "(12, 16)"

MOST_TOKENS = 1024
"""Positions that a browser still draws pair by pair without delay."""


@dataclass(frozen=True)
class Family:
    """Patterns that differ in their options.

    Attributes:
        name: what the reader chooses by.
        text: a pattern as `foveal draw` reads it, with the option `window` for "{window}".
        about: what it is good for, in a sentence.
        options: the values of each option, in Python's words; the first is shown at first. An
            option `length` gives the tokens, where the text does not have them.
        length: tokens, where that is no option; None: the pattern's own.
    """

    name: str
    text: str
    about: str
    options: dict[str, tuple[str, ...]] = field(default_factory=dict)
    length: int | None = None

    def choices(self) -> Iterator[dict[str, str]]:
        """Every combination of values; the last option changes fastest."""
        for values in itertools.product(*self.options.values()):
            yield dict(zip(self.options, values, strict=True))

    def count(self) -> int:
        """Combinations that there are."""
        return math.prod(len(values) for values in self.options.values())

    def named(self, choice: dict[str, str]) -> str:
        """The pattern of a choice as one would write it."""
        return self.text.format(**choice) if choice else self.text

    def pattern(self, choice: dict[str, str]) -> tuple[Pattern, int]:
        """The pattern of a choice, and its tokens.

        Raises:
            ValueError: the values do not go together, as the pattern says.
        """
        pattern = serialize.parse(self.named(choice))
        length = int(choice["length"]) if "length" in choice else self.length
        length = natural_length(pattern, MOST_TOKENS) if length is None else length
        pattern.check_length(length)
        return pattern, length


SEQUENCE_FAMILIES = (
    Family(
        "SlidingWindow",
        "SlidingWindow({window}, causal={causal})",
        "Each token reads its neighbours: cost grows with the length, not with its square.",
        {"window": ("32", "8", "64"), "causal": BOTH, "length": SEQUENCES},
    ),
    Family(
        "Full",
        "Full(causal={causal})",
        "Every token reads every token: what the others are measured beside.",
        {"causal": BOTH, "length": SEQUENCES},
    ),
    Family(
        "Blocks",
        "Blocks({block_size}, causal={causal}, lookback={lookback})",
        "Blocks that read themselves, and as many blocks before as they look back.",
        {
            "block_size": ("16", "32"),
            "lookback": ("1", "0", "2"),
            "causal": BOTH,
            "length": SEQUENCES,
        },
    ),
    Family(
        "Strided",
        "Strided({stride}, causal={causal})",
        "The latest tokens, and every so manieth before them (Sparse Transformer).",
        {"stride": ("16", "8"), "causal": BOTH, "length": SEQUENCES},
    ),
    Family(
        "Fixed",
        "Fixed({stride}, {summary}, causal={causal})",
        "The own block, and the last tokens of each block before, which sum it up.",
        {"stride": ("16", "32"), "summary": ("4", "1"), "causal": BOTH, "length": SEQUENCES},
    ),
    Family(
        "BlockSparse",
        "BlockSparse.{layout}({length}, {block_size})",
        "Any layout of blocks: here those of BigBird and Longformer.",
        {"layout": ("bigbird", "longformer"), "block_size": ("8", "16"), "length": ("256", "128")},
    ),
    Family(
        "Pyramid",
        "Pyramid({block_size}, causal={causal})",
        "Near keys one by one, far ones as means of ever larger clusters (H-Transformer).",
        {"block_size": ("4", "16"), "causal": BOTH, "length": SEQUENCES},
    ),
    Family(
        "Prefix | SlidingWindow",
        "Prefix({num_tokens}) | SlidingWindow({window})",
        "A window, and the first tokens, which everybody reads: attention sinks, a prompt.",
        {"num_tokens": ("4", "16"), "window": ("16", "8"), "length": SEQUENCES},
    ),
    Family(
        "BlockDiffusion",
        "BlockDiffusion({block_size}, {num_tokens})",
        "Noised blocks read the clean ones before them: block diffusion in one pass.",
        {"block_size": ("8", "16"), "num_tokens": ("32", "96")},
    ),
    Family(
        "Shorten",
        "Shorten({factor})",
        "One query for several keys: how an hourglass shortens its sequence.",
        {"factor": ("4", "2"), "length": SEQUENCES},
    ),
    Family(
        "Documents",
        "Documents({lengths})",
        "Documents side by side in one row, none of which looks at another.",
        {"lengths": ("(20, 9, 0, 35)", "(64, 128, 64)")},
    ),
    Family(
        "Packed",
        "Packed(SlidingWindow({window}), {lengths})",
        "A pattern within each document of a row.",
        {"window": ("8", "16"), "lengths": ("(20, 9, 35)", "(64, 128, 64)")},
    ),
    Family(
        "SlidingWindow | Blocks",
        "SlidingWindow({window}) | Blocks({block_size}, causal=True)",
        "Patterns combine: a pair is allowed where either allows it.",
        {"window": ("8", "16"), "block_size": ("32", "16"), "length": SEQUENCES},
    ),
)

IMAGE_FAMILIES = (
    Family(
        "Halo",
        "Halo({size}, {block_size}, {halo_size}, query_stride={query_stride})",
        "The pixels of a block read the block and a border around it (HaloNet).",
        {
            "block_size": ("4", "8"),
            "halo_size": ("2", "1", "3"),
            "query_stride": ("1", "2"),
            "size": (IMAGE, "(16, 16)"),
        },
    ),
    Family(
        "Neighborhood",
        "Neighborhood({size}, {kernel_size}, {dilation}, causal={causal}, border={border})",
        "Each pixel has a window of its own (neighbourhood attention).",
        {
            "kernel_size": ("5", "3", "7"),
            "dilation": ("1", "2"),
            "causal": ("None", "'raster'", "'corner'"),
            "border": ("'clip'", "'shift'"),
            "size": (IMAGE,),
        },
    ),
    Family(
        "Neighborhood by windows",
        "Neighborhood({size}, {kernel_size}, stride={stride}, border='shift')",
        "Blocks of pixels share a window; with stride and kernel alike, those of Swin.",
        {"kernel_size": ("8", "4"), "stride": ("4", "2"), "size": (IMAGE, "(16, 16)")},
    ),
    Family(
        "Neighborhood of clips",
        "Neighborhood({size}, {kernel_size}, causal=({in_time}, False, False))",
        "Windows in time and space; causal in time, no frame reads a later one.",
        {
            "kernel_size": ("(3, 5, 5)", "(3, 3, 3)"),
            "in_time": BOTH,
            "size": ("(4, 6, 8)",),
        },
    ),
    Family(
        "Axial",
        "Axial({size}, {axis}, causal={causal})",
        "A pixel reads its row, or its column.",
        {"axis": ("'row'", "'column'"), "causal": BOTH, "size": (IMAGE, "(16, 16)")},
    ),
    Family(
        "Axial of clips",
        "Axial({size}, {axis}, causal={causal})",
        "A voxel reads along one axis of a clip, or of a volume.",
        {"axis": ("'frames'", "'row'", "'column'"), "causal": BOTH, "size": ("(4, 6, 8)",)},
    ),
    Family(
        "TextImage",
        "TextImage({text_length}, {image_pattern})",
        "Words before a picture: pixels read all words, and each other by a pattern (DALL-E).",
        {
            "image_pattern": (
                f"Axial({IMAGE}, 'column', causal=True)",
                f"Axial({IMAGE}, 'row', causal=True)",
                f"Neighborhood({IMAGE}, 5, causal='corner')",
            ),
            "text_length": ("24", "8"),
        },
    ),
    Family(
        "NextScale",
        "NextScale({sides})",
        "Pictures from coarse to fine: a scale reads itself and the smaller ones (VAR).",
        {"sides": ("(1, 2, 3, 4, 5, 6)", "(1, 2, 4, 8)")},
    ),
    Family(
        "Neighborhood & Blocks",
        "Neighborhood({size}, {kernel_size}) & Blocks({block_size})",
        "Patterns combine: a pair is allowed where both allow it.",
        {"kernel_size": ("7", "5"), "block_size": ("64", "32"), "size": (IMAGE,)},
    ),
)

FAMILIES = (*SEQUENCE_FAMILIES, *IMAGE_FAMILIES)


def given(text: str, length: int | None = None) -> Family:
    """A family of one: a pattern that a reader has named.

    Raises:
        ValueError: the text names no pattern, or the length does not suit it.
    """
    family = Family(text, text, "Given on the command line.", length=length)
    family.pattern({})
    return family
