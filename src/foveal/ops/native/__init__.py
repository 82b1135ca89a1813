"""impl="native": a C++ kernel over the tile plan, compiled once on the user's machine."""

from foveal.ops.native.build import NativeError
from foveal.ops.native.op import native_attend, ready, why_not

__all__ = ["native_attend", "ready", "why_not", "NativeError"]
