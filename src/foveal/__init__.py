"""foveal: structured attention for PyTorch, for long sequences and large images."""

from foveal import patterns
from foveal.ops import Explanation, attend, explain, merge

__version__ = "0.1.0.dev0"

__all__ = ["patterns", "attend", "explain", "Explanation", "merge", "__version__"]
