"""TableBias(rows=): a rule of the user's, right or wrong."""

import pytest
import torch

from foveal import TableBias, attend
from foveal import patterns as P
from foveal.testing import assert_close, dense_attention


def inputs(length: int = 16) -> list[torch.Tensor]:
    return [torch.randn(1, 2, length, 8, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("impl", ["reference", "dense", "tiled", None])
@pytest.mark.parametrize("pattern", [P.SlidingWindow(4), P.Blocks(4, causal=True)])
def test_pairs_that_do_not_exist_need_no_row(pattern: P.Pattern, impl: str | None):
    """`q_idx - k_idx` is right under a causal window, whatever it says of other pairs."""
    tensors, table = inputs(), torch.randn(4, 2, dtype=torch.float64).requires_grad_()
    own = table.detach().clone().requires_grad_()
    far = (torch.arange(16)[:, None] - torch.arange(16)).clamp(0, 3)
    wanted, _ = dense_attention(*tensors, pattern, own[far].movedim(-1, 0)[None])
    out = attend(*tensors, pattern, bias=TableBias(table, rows=lambda q, k: q - k), impl=impl)
    assert_close(out, wanted)
    out.sum().backward(), wanted.sum().backward()
    assert_close(table.grad, own.grad)


@pytest.mark.parametrize("impl", ["reference", "tiled", None])
@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        (3, TypeError, "must be a function"),
        (lambda q, k: None, TypeError, "must return an int tensor, .* got NoneType"),
        (lambda q, k: 0, TypeError, "must return an int tensor, .* got int"),
        (lambda q, k: (q - k) * 0.5, TypeError, "must return an int tensor, .* got torch.float32"),
        (lambda q, k: q > k, TypeError, "must return an int tensor, .* got torch.bool"),
        (
            lambda q, k: torch.zeros(3, dtype=torch.long),
            ValueError,
            "must return a row for each pair",
        ),
        (lambda q, k: q - k - 1, ValueError, "must return rows from 0 to 3, .* got -1; clamp"),
        (lambda q, k: q - k + 2, ValueError, "must return rows from 0 to 3, .* got [45]; clamp"),
    ],
)
def test_rules_that_misbehave(rows, error: type[Exception], words: str, impl: str | None):
    with pytest.raises(error, match=f"^TableBias.rows {words}"):
        attend(*inputs(), P.SlidingWindow(4), bias=TableBias(torch.zeros(4, 2), rows), impl=impl)


def test_a_rule_may_leave_out_an_axis():
    """What depends on queries, or keys, alone is a row of each pair all the same."""
    tensors, table = inputs(), torch.randn(16, 2, dtype=torch.float64)
    whole = TableBias(table, rows=lambda q, k: k + 0 * q)
    by_key = TableBias(table, rows=lambda q, k: k)
    window = P.SlidingWindow(4)
    assert_close(attend(*tensors, window, bias=by_key), attend(*tensors, window, bias=whole))
