"""What layers ask that read a whole map, so that its rows may lie on many ranks."""

from __future__ import annotations

from torch import Tensor


class Rows:
    """The rows of a map, which are all here.

    Where other ranks have some of them, `foveal.parallel` puts another in the place of a layer's,
    which answers for all rows. Along a dimension that is shared, rows come in their order; a
    dimension may hold several entries a row.

    Attributes:
        here: whether all rows are.
    """

    here = True

    def count(self, own: int, what: str = "rows") -> int:
        """How many there are in all, of which `own` are here; `what` names them."""
        return own

    def own(self, x: Tensor, dim: int, count: int) -> Tensor:
        """Of entries of all rows (..., all, ...) those that are here: (..., count, ...)."""
        return x

    def all(self, x: Tensor, dim: int) -> Tensor:
        """The entries of all rows, of those that are here: (..., own, ...) -> (..., all, ...)."""
        return x

    def mean(self, x: Tensor) -> Tensor:
        """Mean over the pixels of a map (batch, dim, height, width): (batch, dim)."""
        return x.mean((2, 3))

    def most(self, x: Tensor) -> Tensor:
        """Maximum over the pixels of a map (batch, dim, height, width): (batch, dim)."""
        return x.amax((2, 3))

    def agreed(self, x: Tensor) -> Tensor:
        """What is drawn at random once for all rows, in any shape."""
        return x


HERE = Rows()
