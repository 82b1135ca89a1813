"""flex_attention(): FlexAttention's score_mod and BlockMask, exact and trained on every device."""

from foveal.ops.mods.api import flex_attention

__all__ = ["flex_attention"]
