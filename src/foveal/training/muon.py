"""Muon: momentum whose singular values are all made one, for the matrices inside a model.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), with Nesterov
momentum, decoupled weight decay, and updates of the size of AdamW's (Liu et al., "Muon is Scalable
for LLM Training", 2025), so that one learning rate serves both.

Differs from torch.optim.Muon in: matrices are orthogonalised together, not one after the other; in
the precision that the device multiplies fastest; with three iterations instead of five, each with
the polynomial that is best for the singular values that the one before leaves (Amsel et al., "The
Polar Express", 2025). Its state has the names of torch's, so that either reads the other's.

Shapes: B matrices, M rows and N columns with M <= N.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from foveal.common.processor import fast_dtype

POLYNOMIALS = (
    (8.0934, -23.6204, 17.4462),
    (3.6366, -2.7219, 0.5365),
    (2.6613, -1.9772, 0.4526),
)
"""a, b, c of x -> a x + b x^3 + c x^5, the one nearest to 1 on [0.01, 1] and then on what the one
before makes of it; together they bring that interval to [0.73, 1.27]."""

_TINY = 1e-30


class Muon(torch.optim.Optimizer):
    """Muon; see above.

    Args:
        params: matrices.
        lr: learning rate, of the size that AdamW takes.
        weight_decay: fraction of lr by which matrices shrink.
        momentum: of the running mean of gradients.

    Raises:
        ValueError: a parameter that is not a matrix, or a number out of its range.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
    ) -> None:
        if not (lr >= 0.0 and weight_decay >= 0.0 and 0.0 <= momentum < 1.0):
            raise ValueError(
                "lr and weight_decay must not be negative and momentum must lie in [0, 1), got "
                f"{lr=}, {weight_decay=}, {momentum=}."
            )
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for p in (p for group in self.param_groups for p in group["params"]):
            if p.ndim != 2 or not p.is_floating_point():
                raise ValueError(
                    f"Muon trains matrices of real numbers, got a parameter of shape "
                    f"{tuple(p.shape)} and {p.dtype}; leave it to AdamW."
                )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step for all matrices that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            given = [p for p in group["params"] if p.grad is not None]
            if given:
                _update(given, self._averaged(given, group["momentum"]), group)
        return loss

    def _averaged(self, parameters: list[Tensor], momentum: float) -> list[Tensor]:
        """Nesterov's look-ahead of the running mean of gradients."""
        grads = [p.grad for p in parameters if p.grad is not None]
        means = []
        for p in parameters:
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p)
            means.append(state["momentum_buffer"])
        torch._foreach_lerp_(means, grads, 1.0 - momentum)
        if is_cut(grads[0]):  # torch 2.11 has no foreach for them
            return [torch.lerp(*pair, momentum) for pair in zip(grads, means, strict=True)]
        return list(torch._foreach_lerp(grads, means, momentum))


def _update(parameters: list[Tensor], directions: list[Tensor], group: dict) -> None:
    lr = group["lr"]
    torch._foreach_mul_(parameters, 1.0 - lr * group["weight_decay"])
    updates = orthogonalize([_whole(matrix) for matrix in directions])
    for p, update in zip(parameters, updates, strict=True):
        # entries of an orthogonal matrix have an rms of 1 / sqrt(N), those of AdamW's of about 0.2
        p.add_(_part_of(update.to(p.dtype), p), alpha=-lr * 0.2 * max(p.shape) ** 0.5)


def is_cut(parameter: Any) -> bool:
    """Whether this process holds only a part of it (a DTensor)."""
    return hasattr(parameter, "full_tensor")


def _whole(matrix: Any) -> Tensor:
    """A matrix of which this process may hold only a part: all of it."""
    whole: Tensor = matrix.full_tensor() if is_cut(matrix) else matrix
    return whole


def _part_of(matrix: Tensor, like: Any) -> Tensor:
    """The part of a whole matrix that this process holds of `like`."""
    if not is_cut(like):
        return matrix
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(matrix, like.device_mesh, like.placements, src_data_rank=None)


def orthogonalize(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Matrices with the same singular vectors whose singular values lie near one.

    Singular values below a hundredth of the largest stay smaller. Computed in the precision that
    the device multiplies fastest, and returned in it.

    Args:
        matrices: of any shapes, on one device.
    """
    by_shape: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, matrix in enumerate(matrices):
        by_shape[matrix.shape[0], matrix.shape[1]].append(index)
    stacks = [torch.stack([matrices[i] for i in group]) for group in by_shape.values()]
    made = _polar(stacks)
    result: dict[int, Tensor] = {}
    for group, stack in zip(by_shape.values(), made, strict=True):
        result.update(zip(group, stack.unbind(0), strict=True))
    return [result[index] for index in range(len(matrices))]


def _polar(stacks: list[Tensor]) -> list[Tensor]:
    """`orthogonalize` of stacks (B, rows, columns), which are used up."""
    dtype = fast_dtype(stacks[0].device, torch.bfloat16)
    wide = [_unit_(x if x.shape[1] <= x.shape[2] else x.mT).to(dtype) for x in stacks]
    done = [_iterate(x) for x in wide] if dtype == torch.bfloat16 else _through_grams(wide)
    return [y if x.shape[1] <= x.shape[2] else y.mT for x, y in zip(stacks, done, strict=True)]


def _unit_(x: Tensor) -> Tensor:
    """Matrices (B, M, N) brought to norm 1, lest their squares leave the range of numbers."""
    return x.div_(torch.linalg.matrix_norm(x, keepdim=True).clamp_min(_TINY))


def _iterate(x: Tensor) -> Tensor:
    """The iterations on matrices (B, M, N) themselves, as a precision of few bits demands."""
    gram = x @ x.mT
    size = _largest(gram)
    x, gram = x / size.sqrt(), gram / size
    for number, (a, b, c) in enumerate(POLYNOMIALS):
        gram = x @ x.mT if number else gram
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def _through_grams(stacks: list[Tensor]) -> list[Tensor]:
    """The iterations on X X^T (M, M), at once for all matrices of M rows, whatever their N.

    Every iteration multiplies X by a polynomial of its own Gram matrix, so the products can be
    taken among (M, M) matrices and meet X once, at the end. That squares the condition, which
    float32 bears and bfloat16 does not.
    """
    by_rows: dict[int, list[int]] = defaultdict(list)
    for index, x in enumerate(stacks):
        by_rows[x.shape[1]].append(index)
    result = list(stacks)
    for members in by_rows.values():
        grams = torch.cat([stacks[i] @ stacks[i].mT for i in members])
        factors = _inverse_root(grams).split([len(stacks[i]) for i in members])
        for i, factor in zip(members, factors, strict=True):
            result[i] = factor @ stacks[i]
    return result


def _inverse_root(gram: Tensor) -> Tensor:
    """What the iterations multiply X with, near gram^(-1/2): (B, M, M) -> same."""
    size = _largest(gram)
    gram, product = gram / size, None
    for number, (a, b, c) in enumerate(POLYNOMIALS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor if product is None else factor @ product
        if number + 1 < len(POLYNOMIALS):
            gram = factor @ gram @ factor
    assert product is not None
    return product / size.sqrt()


def _largest(gram: Tensor) -> Tensor:
    """No less than the largest eigenvalue of each (B, M, M), and not much more: (B, 1, 1)."""
    return torch.linalg.matrix_norm(gram, keepdim=True).clamp_min(_TINY)
