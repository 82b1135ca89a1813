"""The paper's notation for hierarchies, and its rule for counting parameters.

"2@1 1@2 4@4 1@2 2@1" says: two layers at full length, one at half of it, four at a quarter, and
back. The number behind the @ is the total shortening, so the factor of a stage is the quotient of
two neighbours (Nawrot et al., "Hierarchical Transformers Are More Efficient Language Models",
2021, section 2.4).
"""

from __future__ import annotations

import itertools
import re
from typing import Any

_ITEM = re.compile(r"(\d+)@(\d+)")


def parse_hierarchy(text: str) -> tuple[Any, tuple[int, ...]]:
    """Nested depths and the shorten factor of each stage, outermost first.

    >>> parse_hierarchy("2@1 1@2 4@4 1@2 2@1")
    ((2, (1, 4, 1), 2), (2, 2))

    A text whose first item is shortened already has no layers at full length:

    >>> parse_hierarchy("1@2 2@6 1@2")
    ((0, (1, 2, 1), 0), (2, 3))

    Raises:
        ValueError: not of the form N@f ..., not a palindrome, or a shortening that is no multiple
            of the one around it.
    """
    found = [_ITEM.fullmatch(item) for item in text.split()]
    if not found or None in found:
        raise _error(text, "consist of items LAYERS@SHORTENING")
    items = [(int(m[1]), int(m[2])) for m in found if m is not None]
    if items != items[::-1] or len(items) % 2 == 0:
        raise _error(text, "be a palindrome with one innermost stack")
    down = items[: len(items) // 2 + 1]
    if down[0][1] != 1:
        down.insert(0, (0, 1))
    factors = []
    for (_, outer), (_, inner) in itertools.pairwise(down):
        if not outer or inner % outer or inner <= outer:
            raise _error(text, "shorten each stage by a multiple of the one around it")
        factors.append(inner // outer)
    depth: Any = down[-1][0]
    for layers, _ in reversed(down[:-1]):
        depth = (layers, depth, layers)
    return depth, tuple(factors)


def _error(text: str, rule: str) -> ValueError:
    return ValueError(
        f"hierarchy must {rule}, got hierarchy={text!r}; for example '2@1 1@2 4@4 1@2 2@1'."
    )


def count_parameters(text: str, dim: int = 512, ff_dim: int = 2048, num_tokens: int = 256) -> int:
    """Parameters of the paper's model for a hierarchy, by the rule that gives its Table 1.

    A layer has five projections with biases (queries, keys, values, relative positions, output),
    a feed-forward and two LayerNorms; each shortening and each upsampling is one layer more, with
    attention over means and repeats. Embedding and logits are counted, the few LayerNorms and the
    two vectors beside the layers are not.

    >>> round(count_parameters("2@1 1@2 4@4 1@2 2@1") / 1e6)
    48

    Raises:
        ValueError: the text is no hierarchy.
    """
    depth, factors = parse_hierarchy(text)
    layers = 2 * len(factors)
    while not isinstance(depth, int):
        layers += depth[0] + depth[2]
        depth = depth[1]
    layers += depth
    feed_forward = 2 * dim * ff_dim + dim + ff_dim
    return layers * (5 * (dim * dim + dim) + feed_forward + 4 * dim) + 2 * num_tokens * dim
