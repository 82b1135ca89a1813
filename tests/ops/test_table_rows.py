"""TableBias(rows=): a rule of the user's, right or wrong."""

import pytest
import torch

from foveal import TableBias, attend, parallel
from foveal import patterns as P
from foveal.caches.extend import attend_held
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


class Ruled(P.SlidingWindow):
    """A built-in whose rows are others, and no matter of distances."""

    bias_size = 7

    def bias_place(self, q_idx, k_idx):
        return (3 * q_idx + 5 * k_idx) % 7


PERIODIC = [P.SlidingWindow(5), P.Blocks(4), P.Strided(3), P.Full(), Ruled(4)]
PERIODIC += [P.Blocks(4) | P.SlidingWindow(3, False), P.SlidingWindow(6) & P.Strided(2)]


@pytest.mark.parametrize("pattern", PERIODIC, ids=repr)
def test_rules_see_the_places_in_the_whole(pattern: P.Pattern):
    """Some queries, tokens that extend a cache, and every rank gain what they do in the whole."""
    tensors = q, k, v = inputs(24)
    ruled = None if isinstance(pattern, Ruled) else lambda q, k: (3 * q + 5 * k) % 7
    bias = TableBias(torch.randn(7, 2, dtype=torch.float64), ruled)
    q_idx, k_idx = torch.arange(24)[:, None], torch.arange(24)
    rows = (3 * q_idx + 5 * k_idx) % 7
    wanted, _ = dense_attention(*tensors, pattern, bias.table[rows].movedim(-1, 0)[None])
    for first, count in ((5, 3), (8, 8), (19, 5)):
        here = slice(first, first + count)
        part = attend(q[:, :, here], k, v, pattern, bias=bias, q_offset=first)
        assert_close(part, wanted[:, :, here])
        if pattern.is_causal:
            low = int(pattern.mask(24)[here].any(0).nonzero()[0])
            kv, held = torch.stack((k, v))[..., low : first + count, :], torch.arange(low, first)
            none = (None,) * 5
            found = attend_held(
                q[:, :, here], kv, pattern, first, held, *none[:2], bias, *none[:3]
            )
            assert_close(found, wanted[:, :, here])

    def ranked(rank) -> torch.Tensor:
        own = (x[:, :, rank.rank * 8 : rank.rank * 8 + 8] for x in tensors)
        return parallel.attend(*own, pattern, rank, bias=bias)

    assert_close(torch.cat(parallel.simulate(3, ranked), 2), wanted)
