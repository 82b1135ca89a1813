"""Public masks and mods, and attention under them by a dense formula that shares no code."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as theirs

import foveal

Mod = Callable[..., Tensor]
BATCH, HEADS = 2, 3
SIDE = (5, 6, 7)  # a film of 210 pixels
N = math.prod(SIDE)

documents = torch.repeat_interleave(
    torch.arange(9), torch.tensor([1, 60, 2, 31, 7, 40, 30, 38, 1])
)
real = torch.tensor([N - 3, 101])


def learned(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


slopes, table = learned(HEADS), learned(HEADS, 32)
planes, rows, columns = learned(9, HEADS), learned(HEADS, 11), learned(HEADS, 13)
gates = learned(BATCH, N)


# -- masks --------------------------------------------------------------------------------------


def causal(b, h, q, k):
    return q >= k


def window(b, h, q, k):
    return (q - k).abs() < 17


def dilated(b, h, q, k):
    return ((q - k).abs() < 33) & ((q - k) % 3 == 0)


def document(b, h, q, k):
    return documents[q] == documents[k]


def prefix(b, h, q, k):
    return (k < 45) | (q >= k)


def sinks(b, h, q, k):
    return (k < 4) | ((q - k) < 20)


def padding(b, h, q, k):
    return k < real[b]


def widening(b, h, q, k):
    return (q - k).abs() < 9 * (h + 1)


def _pixel(i, width):
    return i // width, i % width


def neighborhood_2d(b, h, q, k):
    (y, x), (v, u) = _pixel(q, 15), _pixel(k, 15)
    return ((y - v).abs() <= 2) & ((x - u).abs() <= 3)


def neighborhood_3d(b, h, q, k):
    (t, y), (s, v) = _pixel(q // SIDE[2], SIDE[1]), _pixel(k // SIDE[2], SIDE[1])
    near = ((t - s).abs() <= 1) & ((y - v).abs() <= 2)
    return near & ((q % SIDE[2] - k % SIDE[2]).abs() <= 2)


def sliding_tiles(b, h, q, k):
    (y, x), (v, u) = _pixel(q, 15), _pixel(k, 15)
    return ((y // 4 - v // 4).abs() <= 1) & ((x // 4 - u // 4).abs() <= 1)


def diffusion(b, h, q, k):
    half = N // 2
    clean_q, clean_k = q >= half, k >= half
    own, other = (q % half) // 8, (k % half) // 8
    return (
        (~clean_q & ~clean_k & (own == other))
        | (~clean_q & clean_k & (own > other))
        | (clean_q & clean_k & (own >= other))
    )


def strided(b, h, q, k):
    return (q >= k) & (((q - k) < 14) | (k % 14 == 13))


def late(b, h, q, k):
    return (q >= k) & (q >= 70)


# -- scores -------------------------------------------------------------------------------------


def alibi(score, b, h, q, k):
    return score - slopes[h] * (q - k).abs()


def softcap(score, b, h, q, k):
    return 5 * torch.tanh(score / 5)


def t5(score, b, h, q, k):
    far = (q - k).abs()
    log = 8 + ((far.clamp(min=1).float() / 8).log() / math.log(128 / 8) * 8).long()
    bucket = torch.where(far < 8, far, log.clamp(max=15))
    return score + table[h, bucket + torch.where(k > q, 16, 0)]


def relative_2d(score, b, h, q, k):
    (y, x), (v, u) = _pixel(q, 15), _pixel(k, 15)
    down, right = (y - v).clamp(-5, 5) + 5, (x - u).clamp(-6, 6) + 6
    return score + rows[h, down] + columns[h, right]


def documented(score, b, h, q, k):
    return score + planes[documents[q], h] * torch.sigmoid(planes[documents[k], h])


def gated(score, b, h, q, k):
    return softcap(score, b, h, q, k) * torch.sigmoid(gates[b, k]) - slopes[h] * (q - k).abs()


def only_past(score, b, h, q, k):
    return torch.where(q >= k, score, -torch.inf)


class Case(NamedTuple):
    mask: Mod | None
    score: Mod | None = None
    captured: tuple[Tensor, ...] = ()
    batch: int | None = None  # with which the BlockMask is made
    heads: int | None = None


CASES = {
    "causal": Case(causal),
    "window": Case(window),
    "dilated window": Case(dilated),
    "documents": Case(document),
    "causal documents": Case(theirs.and_masks(causal, document)),
    "prefix": Case(prefix),
    "sinks": Case(theirs.and_masks(causal, sinks)),
    "padding": Case(padding, batch=BATCH),
    "a window for each head": Case(widening, heads=HEADS),
    "padded, by head": Case(
        theirs.and_masks(padding, widening),
        batch=BATCH,
        heads=HEADS,
        score=alibi,
        captured=(slopes,),
    ),
    "neighbourhood 2-D": Case(neighborhood_2d),
    "neighbourhood 3-D": Case(neighborhood_3d),
    "sliding tiles": Case(sliding_tiles),
    "block diffusion": Case(diffusion),
    "strided": Case(strided),
    "rows without keys": Case(late),
    "rows without keys, capped": Case(late, softcap),
    "alibi": Case(causal, alibi, (slopes,)),
    "soft-cap": Case(theirs.or_masks(window, prefix), softcap),
    "T5": Case(None, t5, (table,)),
    "T5, causal documents": Case(theirs.and_masks(causal, document), t5, (table,)),
    "2-D table": Case(neighborhood_2d, relative_2d, (rows, columns)),
    "by document": Case(theirs.or_masks(document, window), documented, (planes,)),
    "gates": Case(theirs.and_masks(prefix, padding), gated, (gates, slopes), batch=BATCH),
    "scores of -inf": Case(None, only_past),
}


def tensors(dtype=torch.float64, heads=HEADS, kv_heads=HEADS, lengths=(N, N)) -> list[Tensor]:
    """q, k and v that need gradients."""
    generator = torch.Generator().manual_seed(7)

    def draw(many: int, length: int, features: int) -> Tensor:
        shape = (BATCH, many, length, features)
        x = torch.randn(shape, generator=generator, dtype=torch.float64)
        return x.to(dtype).requires_grad_()

    q, k = draw(heads, lengths[0], 8), draw(kv_heads, lengths[1], 8)
    return [q, k, draw(kv_heads, lengths[1], 5)]


def block_mask(case: Case, block=128, lengths=(N, N)) -> theirs.BlockMask | None:
    if case.mask is None:
        return None
    return theirs.create_block_mask(
        case.mask, case.batch, case.heads, *lengths, device="cpu", BLOCK_SIZE=block
    )


def dense(case: Case, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """(out, lse) in float64, every pair at once; the mods run on broadcast positions."""
    q, k, v = (x.double() for x in (q, k, v))
    repeats = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(repeats, 1) for x in (k, v))
    scores = q @ k.mT / math.sqrt(q.shape[3])
    at = [torch.arange(n) for n in scores.shape]
    at = [x.view(*(-1 if dim == i else 1 for dim in range(4))) for i, x in enumerate(at)]
    if case.score is not None:
        scores = case.score(scores, *at).double()
    if case.mask is not None:
        scores = scores.masked_fill(~case.mask(*at).expand(scores.shape), -torch.inf)
    empty = (scores == -torch.inf).all(-1, keepdim=True)
    weights = scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
    lse = scores.masked_fill(empty, 0.0).logsumexp(-1).masked_fill(empty[..., 0], -torch.inf)
    return weights @ v, lse


def gradients(found: tuple[Tensor, Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """Of a fixed sum of out and lse."""
    out, lse = found
    generator = torch.Generator().manual_seed(3)
    g, f = (torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (out, lse))
    lse = lse.masked_fill(lse == -torch.inf, 0.0)
    loss = (out.double() * g).sum() + (lse.double() * f).sum()
    return list(torch.autograd.grad(loss, inputs, retain_graph=True))


def run(case: Case, q: Tensor, k: Tensor, v: Tensor, mask=None, **options):
    """(out, lse) of a case under flex_attention."""
    return foveal.flex_attention(
        q, k, v, case.score, mask, enable_gqa=q.shape[1] != k.shape[1], return_lse=True, **options
    )
