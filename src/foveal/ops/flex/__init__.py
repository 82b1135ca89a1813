"""impl="flex": FlexAttention over blocks that the pattern's geometry tells."""

from foveal.ops.flex.op import flex_attend, why_not
from foveal.ops.flex.trust import trusted

__all__ = ["flex_attend", "trusted", "why_not"]
