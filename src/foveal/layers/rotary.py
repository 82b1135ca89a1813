"""Rotary positions along a sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from foveal.common.arguments import checked
from foveal.layers.positions import Positions
from foveal.layers.weights import is_traced

TABLE_LIMIT = 1 << 17
"""Positions beyond this are computed when needed instead of being kept in a table."""


class Rotary(Positions):
    """Turns pairs of features by angles that grow with the position, so that scores see distance.

    Su et al., "RoFormer" (2021). Feature i is paired with feature i + dim / 2. Without weights;
    layers may share one instance. The rotation is done in float32 at least.

    Args:
        dim: features of a head; even.
        base: wavelengths run from 2 pi to 2 pi * base.

    Raises:
        ValueError: dim is odd or not positive.
    """

    @checked
    def __init__(self, dim: int, base: float = 10_000.0) -> None:
        super().__init__()
        if dim < 2 or dim % 2:
            raise ValueError(
                f"dim_head must be even for rotary positions, got {dim}; use an even dim_head or "
                "rotary=False."
            )
        self.dim, self.base = dim, base
        self._table: Tensor | None = None

    def extra_repr(self) -> str:
        return f"dim={self.dim}, base={self.base:g}"

    def forward(self, x: Tensor, offset: int | Tensor = 0, stride: int = 1) -> Tensor:
        """As in Positions: x (batch, tokens, heads, dim) -> same, turned."""
        rows, y = self._rows(offset, x.shape[1], stride, x.device), x
        wide = torch.promote_types(x.dtype, torch.float32)
        if wide != torch.float32:
            rows = rows.to(wide)
        elif x.dtype != wide:
            y = x.to(wide)
        cos, sin = rows.unbind(1)
        # the sign of the sine's first half does the subtraction, so one fused product is enough
        out = torch.addcmul(y * cos, y.roll(self.dim // 2, -1), sin)
        return out if y is x else out.to(x.dtype)

    def parts(self, offset: int | Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What turns tokens x (..., dim) of one position: x cos + x[..., partners] sin.

        Returns:
            cos and signed sin (dim,) in the dtype of x, and the place of each feature's partner.
        """
        cos, sin = self.row(offset, x.device).to(x.dtype).unbind(0)
        return cos, sin, torch.arange(self.dim, device=x.device).roll(self.dim // 2)

    def row(self, offset: int | Tensor, device: torch.device) -> Tensor:
        """Cosines and signed sines of one position: (2, dim) float32, contiguous."""
        return self._rows(offset, 1, 1, device).view(2, self.dim)

    def _rows(self, offset: int | Tensor, count: int, stride: int, device: torch.device) -> Tensor:
        """Cosines and signed sines: (count, 2, 1, dim) float32."""
        if isinstance(offset, Tensor):
            return self._angles(offset, count, stride, device)
        end = offset + count * stride
        if torch.compiler.is_compiling() or end > TABLE_LIMIT or is_traced():
            return self._angles(offset, count, stride, device)
        table = self._table
        if table is None or table.shape[0] < end or table.device != device:
            rows = max(256, 1 << (end - 1).bit_length())
            with torch.inference_mode(False):  # training must be able to use the table later
                table = self._angles(0, rows, 1, device)
            self._table = table
        return table[offset:end:stride]

    def _angles(
        self, offset: int | Tensor, count: int, stride: int, device: torch.device
    ) -> Tensor:
        # float64, so that a row is the same however it was reached, and exact at any offset
        exact = torch.float32 if device.type == "mps" else torch.float64
        half = torch.arange(0, -self.dim, -2, dtype=exact, device=device) / self.dim
        places = torch.arange(count, dtype=exact, device=device)
        if stride != 1:  # whatever is not needed would be an operation of each graph
            places = places * stride
        if isinstance(offset, Tensor) or offset:
            places = places + offset
        angles = places[:, None] * self.base**half
        cos, sin = angles.cos(), angles.sin()
        rows = torch.stack((cos, cos, -sin, sin), 1).to(torch.float32)
        return rows.view(count, 2, 1, self.dim)
