"""What decoding remembers: explicit state, bounded by what the pattern can still read."""

from foveal.caches.attention import AttentionCache
from foveal.caches.pyramid import PyramidCache
from foveal.caches.pyramid_memory import PyramidMemory
from foveal.caches.state import DecodingState

__all__ = ["AttentionCache", "PyramidCache", "PyramidMemory", "DecodingState"]
