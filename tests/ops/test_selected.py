"""attend_selected reads the blocks that a tensor names, and nothing else, in every way of computing it.

The oracle is written here, pair by pair, and shares no code with the package.
"""  # noqa: E501

import itertools
import math
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import foveal
from foveal import attend_selected
from foveal import patterns as P
from foveal.ops.native import build

HAS_NATIVE = build.why_not() is None
IMPLS = ("tiled", "native", "reference") if HAS_NATIVE else ("tiled", "reference")
FLOAT32 = 2e-5  # relative RMS
FLOAT64 = 1e-10


# -- the oracle ----------------------------------------------------------------------------------


def oracle(q, k, v, blocks, size, tile, causal, first, key_mask, scale, sinks=None, softcap=None):
    """(out, lse) in float64, from a mask that is filled index by index."""
    (batch, heads, n, _), (_, kv_heads, m, _) = q.shape, k.shape
    group = heads // kv_heads
    mask = torch.zeros(batch, heads, n, m, dtype=torch.bool)
    for b, h, i in itertools.product(range(batch), range(heads), range(n)):
        for block in blocks[b, h // group, i // tile].tolist():
            if block >= 0:
                mask[b, h, i, block * size : block * size + size] = True
        if causal:
            mask[b, h, i, max(0, first + i + 1) :] = False
    if key_mask is not None:
        mask = mask & key_mask[:, None, None]
    k, v = (torch.stack([x[:, h // group] for h in range(heads)], 1) for x in (k, v))
    logits = torch.einsum("bhid,bhjd->bhij", q, k) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    weights = torch.where(mask, logits, -math.inf).exp()
    total = weights.sum(-1)
    if sinks is not None:
        total = total + sinks[:, None].exp()
    lse = torch.where(total > 0, total, 1.0).log().masked_fill(total == 0, -math.inf)
    out = (
        torch.einsum("bhij,bhjd->bhid", weights, v) / torch.where(total > 0, total, 1.0)[..., None]
    )
    return out, lse


@dataclass
class Case:
    """One drawn call: float64 tensors, and options by their names."""

    word: str
    tensors: dict[str, Tensor]  # q, k, v, perhaps sinks
    blocks: Tensor
    size: int
    tile: int
    first: int
    options: dict[str, Any] = field(default_factory=dict)
    impl: str = "tiled"
    dtype: torch.dtype = torch.float64


def draw_case(word: str) -> Case:
    draw = random.Random(word)
    torch.manual_seed(draw.randrange(1 << 30))
    batch, kv_heads, group = draw.choice((1, 2)), draw.choice((1, 2, 3)), draw.choice((1, 2, 4))
    n = draw.choice((0, 1, 2, 17, 37, 64, 97))
    m = draw.choice((n, n, n + draw.randint(0, 40), draw.randint(0, 100)))
    size, tile = draw.choice((1, 3, 16, 64, 100)), draw.choice((1, 2, 16, 17, 64, 100))
    count, dims = draw.choice((0, 1, 3, 5)), (draw.choice((1, 8, 24)), draw.choice((3, 8, 16)))
    tiles, most = -(-n // tile), -(-m // size)
    heads = kv_heads * group

    def view(heads, length, dim):
        if draw.random() < 0.5:
            return torch.randn(batch, heads, length, dim, dtype=torch.float64)
        by_token = torch.randn(batch, length, 2, heads, dim, dtype=torch.float64)
        return by_token[:, :, 1].transpose(1, 2)  # as a projection of several parts leaves it

    tensors = {"q": view(heads, n, dims[0])}
    tensors |= {"k": view(kv_heads, m, dims[0]), "v": view(kv_heads, m, dims[1])}
    if draw.random() < 0.3:
        tensors["sinks"] = torch.randn(heads, dtype=torch.float64)
    shape = (batch, kv_heads, tiles, count)
    blocks = torch.randint(-2, most, shape) if most else torch.full(shape, -1)
    offset = draw.choice((0, 5, -1)) if m >= n else draw.choice((0, 3))
    options: dict[str, Any] = {"causal": draw.random() < 0.6, "q_offset": offset}
    if draw.random() < 0.3:
        options["key_mask"] = torch.rand(batch, m) > 0.3
    if draw.random() < 0.3:
        options["scale"] = draw.choice((0.0, 0.7, -0.4))
    dtype = draw.choice((torch.float64, torch.float32, torch.float32))
    impl = draw.choice([i for i in IMPLS if i != "native" or dtype == torch.float32])
    if draw.random() < 0.2:
        options["softcap"] = draw.choice((0.5, 4.0))
    first = m - n if offset == -1 else offset
    return Case(word, tensors, blocks, size, tile, first, options, impl, dtype)


def results(case: Case, exact: bool):
    """[out, lse] and the gradients of all tensors."""
    given = {name: x.to(case.dtype) for name, x in case.tensors.items()}
    given = {name: (x.double() if exact else x).requires_grad_() for name, x in given.items()}
    q, k, v = given["q"], given["k"], given["v"]
    sinks, options = given.get("sinks"), case.options
    if exact:
        scale = options.get("scale", q.shape[3] ** -0.5)
        extra = (options.get("key_mask"), scale, sinks, options.get("softcap"))
        place = (case.size, case.tile, options["causal"], case.first)
        out, lse = oracle(q, k, v, case.blocks, *place, *extra)
    else:
        out, lse = attend_selected(
            q,
            k,
            v,
            case.blocks,
            case.size,
            query_block=case.tile,
            sinks=sinks,
            impl=case.impl,
            return_lse=True,
            **options,
        )
    random = torch.Generator().manual_seed(1)
    d_out, d_lse = (
        torch.randn(x.shape, generator=random, dtype=torch.float64) for x in (out, lse)
    )
    loss = (out * d_out).sum() + (lse.masked_fill(lse == -math.inf, 0.0) * d_lse).sum()
    grads = torch.autograd.grad(loss, list(given.values()))
    return [out.detach(), lse.detach(), *grads], ["out", "lse", *given]


def differences(
    got: list[Tensor], want: list[Tensor], names: list[str], limit: float
) -> list[str]:
    found = []
    for name, one, other in zip(names, got, want, strict=True):
        if one.shape != other.shape:
            found.append(f"{name} has shape {tuple(one.shape)}, not {tuple(other.shape)}")
            continue
        there = other > -math.inf
        if not torch.equal(one > -math.inf, there):
            found.append(f"{name} is -inf elsewhere")
            continue
        one, other = one.double()[there], other[there]
        error = (one - other).norm() / other.norm().clamp(min=1.0 if name != "out" else 1e-3)
        if not error <= limit:
            found.append(f"{name} differs by {error:.2g}")
    return found


@pytest.mark.parametrize("part", range(2))
def test_random_calls(part):
    """Outputs, log-sum-exps and all gradients are those of the definition."""
    wrong = []
    for at in range(part, 80, 2):
        case = draw_case(f"selected-{at}")
        got, names = results(case, exact=False)
        want, _ = results(case, exact=True)
        limit = FLOAT64 if case.dtype == torch.float64 else FLOAT32
        wrong += [f"{case.word}: {x}" for x in differences(got, want, names, limit)]
    assert not wrong, "\n".join(wrong)


# -- what it promises beside ---------------------------------------------------------------------


def tensors(n=200, m=None, heads=4, kv_heads=2, dim=16, dtype=torch.float32, batch=2, grad=False):
    random = torch.Generator().manual_seed(0)
    sizes = ((heads, n), (kv_heads, m or n), (kv_heads, m or n))
    return [
        torch.randn(batch, h, length, dim, generator=random).to(dtype).requires_grad_(grad)
        for h, length in sizes
    ]


def choose(kv_heads=2, tiles=13, count=4, most=13, batch=2):
    random = torch.Generator().manual_seed(1)
    return torch.randint(-1, most, (batch, kv_heads, tiles, count), generator=random)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("tile", [1, 16, 100])
def test_order_and_repetition_do_not_matter_by_one_bit(impl, tile):
    """Blocks are a set: any order, any repetition, any int dtype, and every run gives the same."""
    tiles = -(-200 // tile)
    blocks = choose(tiles=tiles, count=5)
    shuffled = blocks[..., torch.tensor([3, 0, 4, 1, 2, 0, 3])].to(torch.int32)

    def run(blocks):
        inputs = tensors(grad=True)
        out = attend_selected(*inputs, blocks, 16, query_block=tile, impl=impl)
        return [out, *torch.autograd.grad(out.square().sum(), inputs)]

    first = run(blocks)
    for again in (run(blocks), run(shuffled)):
        assert all(map(torch.equal, first, again))


@pytest.mark.parametrize("impl", IMPLS)
def test_all_blocks_are_dense_attention(impl):
    """Naming every block gives causal attention."""
    q, k, v = tensors()
    blocks = torch.arange(13).expand(2, 2, 13, 13)
    out = attend_selected(q, k, v, blocks, 16, impl=impl)
    torch.testing.assert_close(out, foveal.attend(q, k, v, P.Full(causal=True)))


@pytest.mark.parametrize("impl", IMPLS)
def test_what_nobody_reads_may_be_anything(impl):
    """NaN in keys and values that no query may read reaches no result and no gradient."""
    inputs = tensors(n=50, m=64, grad=True)
    blocks = torch.tensor([0, 2, -1]).expand(2, 2, 4, 3)
    real = torch.ones(2, 64, dtype=torch.bool)
    real[1, 5:9] = False
    unread = ~real
    unread[:, 16:32] = unread[:, 48:] = True
    options = {"key_mask": real, "q_offset": 14, "impl": impl}
    want = attend_selected(*inputs, blocks, 16, **options)
    odd = [x.detach().masked_fill(unread[:, None, :, None], math.nan) for x in inputs[1:]]
    odd = [inputs[0], *(x.requires_grad_() for x in odd)]
    out = attend_selected(*odd, blocks, 16, **options)
    assert torch.equal(out, want)
    for one, other in zip(
        torch.autograd.grad(out.sum(), odd), torch.autograd.grad(want.sum(), inputs), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_token_by_token_is_the_whole(impl, dtype):
    """Decoding with q_offset=-1 gives the rows of the whole pass; so do chunks."""
    q, k, v = tensors(n=40, dtype=dtype, dim=8)
    blocks = choose(tiles=40, most=5)
    whole = attend_selected(q, k, v, blocks, 8, query_block=1, impl=impl)
    limit = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for end in (1, 8, 23, 40):
        one = attend_selected(
            *(q[:, :, end - 1 : end], k[:, :, :end], v[:, :, :end]),
            blocks[:, :, end - 1 : end].clamp(max=(end - 1) // 8),
            8,
            q_offset=-1,
            impl=impl,
        )
        full = attend_selected(
            *(q[:, :, :end], k, v),
            blocks[:, :, :end].clamp(max=(end - 1) // 8),
            8,
            query_block=1,
            impl=impl,
        )
        torch.testing.assert_close(one, full[:, :, -1:], atol=limit, rtol=limit)
    parts = [
        attend_selected(
            q[:, :, a:b], k, v, blocks[:, :, a:b], 8, query_block=1, q_offset=a, impl=impl
        )
        for a, b in ((0, 13), (13, 14), (14, 40))
    ]
    torch.testing.assert_close(torch.cat(parts, 2), whole, atol=limit, rtol=limit)


@pytest.mark.parametrize("impl", IMPLS)
def test_merges_with_a_window(impl):
    """A window and the blocks before it, merged, are attention over both, gradients too."""
    inputs = tensors(n=96, dtype=torch.float32, grad=True)
    blocks = torch.tensor([0, 1]).expand(2, 2, 6, 2)
    own = torch.arange(6)
    blocks = blocks.masked_fill(blocks >= own[:, None] - 1, -1)
    near = foveal.attend(*inputs, P.Blocks(16, True, 1), return_lse=True)
    far = attend_selected(*inputs, blocks, 16, return_lse=True, impl=impl)
    out, _ = foveal.merge([near, far])
    both = P.BlockSparse(torch.eye(6) + torch.eye(6).roll(-1, 1).tril() + (own < 2), 16, True)
    want = foveal.attend(*inputs, both, impl="reference")
    torch.testing.assert_close(out, want)
    grads = [torch.autograd.grad(x.square().sum(), inputs) for x in (out, want)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("impl", IMPLS)
def test_compiled_it_is_one_operator(impl):
    """torch.compile(fullgraph=True) and torch.export take it, and blocks that a graph chooses."""
    q, k, v = tensors(n=70, grad=True)

    class Model(torch.nn.Module):
        def forward(self, q, k, v):
            scores = q[:, ::2, ::16].detach() @ k[:, :, ::16].detach().mT
            blocks = scores.topk(2).indices
            return attend_selected(q, k, v, blocks, 16, impl=impl)

    model = Model()
    want = model(q, k, v)
    out = torch.compile(model, fullgraph=True, backend="aot_eager")(q, k, v)
    torch.testing.assert_close(out, want)
    grads = [torch.autograd.grad(x.square().sum(), (q, k, v)) for x in (out, want)]
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)
    exported = torch.export.export(model, (q, k, v))
    if impl != "reference":
        assert f"foveal.selected_{impl}_forward" in str(exported.graph)
    torch.testing.assert_close(exported.module()(q, k, v), want)


def test_derivatives_beyond_the_first():
    """Second derivatives, forward mode and torch.func are right: they are taken in plain torch."""
    inputs = [x.double().requires_grad_() for x in tensors(n=7, dim=2, batch=1)]
    blocks = torch.tensor([[0, 1], [1, -1], [-1, -1], [1, 0]]).expand(1, 2, 4, 2)

    def call(q, k, v):
        return attend_selected(q, k, v, blocks, 4, query_block=2, softcap=2.0, impl="tiled")

    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)
    dual = torch.func.jvp(call, tuple(inputs), tuple(torch.ones_like(x) for x in inputs))[1]
    rows = torch.func.jacrev(call, (0, 1, 2))(*inputs)
    total = sum(row.flatten(4).sum(-1) for row in rows)
    torch.testing.assert_close(dual, total)
    many = torch.func.vmap(call, (None, 0, 0))(
        inputs[0], *(torch.stack([x, -x]) for x in inputs[1:])
    )
    torch.testing.assert_close(many[1], call(inputs[0], -inputs[1], -inputs[2]))


def test_autocast_and_dtypes():
    """Under autocast it computes in its dtype; bfloat16 is near, and a float16 call runs."""
    q, k, v = tensors()
    blocks = choose()
    want = attend_selected(q, k, v, blocks, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out = attend_selected(q, k, v, blocks, 16)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), want, atol=3e-2, rtol=3e-2)
    half = attend_selected(q.half(), k.half(), v.half(), blocks, 16)
    torch.testing.assert_close(half.float(), want, atol=3e-3, rtol=3e-3)


WRONG = {
    "out of range": (lambda a: {"blocks": a["blocks"] + 7}, ValueError, "blocks must be below 13"),
    "float": (lambda a: {"blocks": a["blocks"].float()}, ValueError, "int dtype"),
    "mask": (lambda a: {"blocks": a["blocks"] > 0}, ValueError, "bool mask"),
    "list": (lambda a: {"blocks": [0]}, TypeError, "int tensor"),
    "heads": (lambda a: {"blocks": a["blocks"][:, :1]}, ValueError, r"= \(2, 2, 13, count\)"),
    "tiles": (lambda a: {"query_block": 8}, ValueError, r"\(2, 2, 25, count\) for query_block=8"),
    "shape": (lambda a: {"blocks": a["blocks"][0]}, ValueError, "blocks must be"),
    "size": (lambda a: {"block_size": 0}, ValueError, "block_size must be a positive int"),
    "fraction": (lambda a: {"block_size": 1.5}, ValueError, "block_size must be a positive int"),
    "tile": (lambda a: {"query_block": True}, ValueError, "query_block must be a positive int"),
    "causal": (lambda a: {"causal": "yes"}, ValueError, "causal must be True or False"),
    "offset": (lambda a: {"q_offset": -2}, ValueError, "q_offset must be an int of at least -1"),
    "impl": (lambda a: {"impl": "natve"}, ValueError, "did you mean 'native'"),
    "keys": (lambda a: {"k": a["k"][..., :3]}, ValueError, "same head_dim"),
    "mask of keys": (lambda a: {"key_mask": torch.ones(3)}, ValueError, "key_mask must be bool"),
    "softcap": (lambda a: {"softcap": 0}, ValueError, "softcap must be a positive number"),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_told(name):
    """A mistake is named, with what came and what was wanted."""
    q, k, v = tensors()
    given = {"q": q, "k": k, "v": v, "blocks": choose(), "block_size": 16}
    given["blocks"][0, 0, 0, 0] = 12
    change, kind, words = WRONG[name]
    with pytest.raises(kind, match=words):
        attend_selected(**(given | change(given)))


def counted(job) -> int:
    with FlopCounterMode(display=False) as counter:
        job()
    return counter.get_total_flops()


@pytest.mark.parametrize("impl", [i for i in IMPLS if i != "reference"])
def test_operations_are_counted(impl):
    """FlopCounterMode counts the most pairs that the shapes allow: two products, then five."""
    inputs = tensors(grad=True)
    pairs = 2 * 4 * 200 * 4 * 16  # batch, heads, queries, blocks, keys of a block

    def run():
        return attend_selected(*inputs, choose(), 16, impl=impl)

    assert counted(run) == 2 * pairs * (16 + 16)
    both = counted(lambda: run().sum().backward())
    assert both == 2 * pairs * (16 + 16) + 2 * pairs * (3 * 16 + 2 * 16)


def test_explained():
    """explain_selected names the implementation that runs, and the pairs of blocks that differ."""
    told = foveal.explain_selected(20, 4, 2, heads=3, head_dim=5)
    assert told.impl == ("native" if HAS_NATIVE else "tiled")
    assert foveal.explain_selected(20, 4, 2, dtype=torch.float64).impl == "tiled"
    assert told.pairs == sum(min(i + 1, 8) for i in range(20))
    # tiles of 4 queries read 4 keys, then 8
    assert told.visited == 4 * 4 + 16 * 8
    assert told.flops == 2 * told.visited * 3 * 10
    assert foveal.explain_selected(20, 4, 2, causal=False).pairs == 20 * 8
    one = foveal.explain_selected(20, 4, 2, num_queries=1, q_offset=-1)
    assert (one.pairs, one.visited, one.num_queries) == (8, 8, 1)
    with pytest.raises(ValueError, match="block_size must be a positive int"):
        foveal.explain_selected(20, 0, 2)
