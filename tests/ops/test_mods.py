"""flex_attention: FlexAttention's masks and mods, trained on a CPU."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from mod_cases import (
    BATCH,
    CASES,
    HEADS,
    Case,
    N,
    block_mask,
    causal,
    dense,
    gradients,
    run,
    softcap,
    t5,
    table,
    tensors,
)
from torch.nn.attention import flex_attention as theirs

import foveal
from foveal import patterns as P
from foveal.testing import assert_close, relative_rms

BLOCKS = {"causal": (64, 32), "padded, by head": 16, "T5, causal documents": (48, 100)}


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's flex_attention by its definition, without the compiler."""
    monkeypatch.setattr(theirs, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


@pytest.mark.parametrize("name", CASES)
def test_it_equals_torchs_and_dense_gradients(name, eager):
    """Forward as torch's eager one, gradients as autograd's through every pair, in float64."""
    case, (q, k, v) = CASES[name], tensors()
    mask = block_mask(case, BLOCKS.get(name, 128))
    out, lse = run(case, q, k, v, mask)
    with torch.no_grad():
        expected, aux = theirs.flex_attention(
            *(x.detach() for x in (q, k, v)),
            case.score,
            mask,
            return_aux=theirs.AuxRequest(lse=True),
        )
    assert_close(out, expected, 1e-12)
    assert_close(lse, aux.lse, 1e-12)
    inputs = [q, k, v, *case.captured]
    ours = gradients((out, lse), inputs)
    for one, other in zip(ours, gradients(dense(case, q, k, v), inputs), strict=True):
        assert_close(one, other, 1e-10)


@pytest.mark.parametrize("name", ["alibi", "causal documents", "padded, by head", "gates"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_precisions(name, dtype):
    """float32 to 2e-5; half precision to what it can hold; the log-sum-exp is float32."""
    case, (q, k, v) = CASES[name], tensors(dtype)
    found = run(case, q, k, v, block_mask(case))
    assert found[0].dtype == dtype
    assert found[1].dtype == torch.float32
    inputs = [q, k, v, *case.captured]
    limit = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}[dtype]
    expected = dense(case, q, k, v)
    pairs = [*zip(gradients(found, inputs), gradients(expected, inputs), strict=True)]
    for one, other in [(found[0], expected[0]), *pairs]:
        assert relative_rms(one, other) < limit
    assert [x.dtype for x, _ in pairs] == [dtype] * 3 + [torch.float64] * len(case.captured)


@pytest.mark.parametrize("name", ["causal", "padded, by head", "gates"])
def test_grouped_heads_and_lengths_that_differ(name):
    """kv heads for groups of heads; fewer or more queries than keys, down to one."""
    case = CASES[name]
    for lengths in ((70, N), (N, 97), (1, N)):
        q, k, v = tensors(heads=HEADS, kv_heads=1, lengths=lengths)
        found = run(case, q, k, v, block_mask(case, 32, lengths))
        inputs = [q, k, v]
        expected = dense(case, q, k, v)
        assert_close(found[0], expected[0], 1e-10)
        for one, other in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
            assert_close(one, other, 1e-10)


def test_one_memory_for_the_whole_batch():
    """A key and value of one sequence serve every sequence of queries."""
    q, k, v = tensors()
    found = run(CASES["soft-cap"], q, k[:1], v[:1], block_mask(CASES["soft-cap"]))
    whole = [x[:1].expand(BATCH, -1, -1, -1) for x in (k, v)]
    expected = dense(CASES["soft-cap"], q, *whole)
    for one, other in zip(
        gradients(found, [q, k, v]), gradients(expected, [q, k, v]), strict=True
    ):
        assert_close(one, other, 1e-10)


@pytest.mark.parametrize("lengths", [(0, 5), (5, 0), (0, 0)])
def test_nothing_to_read(lengths):
    """Lengths of zero give empty results, or zeros."""
    q, k, v = tensors(lengths=lengths)
    out, lse = run(CASES["alibi"], q, k, v)
    assert out.shape == (BATCH, HEADS, lengths[0], 5)
    assert bool((out == 0).all())
    assert bool((lse == -torch.inf).all())
    out.sum().backward()


# -- what is captured ---------------------------------------------------------------------------

GLOBAL = torch.linspace(-1, 1, HEADS, dtype=torch.float64).requires_grad_()


def by_global(score, b, h, q, k):
    return score * (1 + GLOBAL[h])


class Relative(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(
            torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, HEADS)
        ).double()
        self.embed = torch.nn.Embedding(9, HEADS).double()

    def forward(self, score, b, h, q, k):
        far = ((q - k) / N).double()
        return score + self.net(far[None])[h] + self.embed((q - k).clamp(-4, 4) + 4)[h]


def scaled(factors, score, b, h, q, k, *, by):
    return score * factors["heads"][0][h] * by


def by_hand(net, score, q, k):
    """What Relative does, for (.., n, n) scores."""
    far = ((q - k) / N).double()
    added = net.net(far[..., None]) + net.embed((q - k).clamp(-4, 4) + 4)
    return score + added[0].movedim(-1, 1)


def captures():
    """By name: a mod, the same for all pairs by hand, and what it captures."""
    net = Relative()
    factor = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    heads = torch.rand(HEADS, dtype=torch.float64, requires_grad=True)
    derived = heads.exp()  # part of a graph that lies outside
    own = list(net.parameters())

    def inner(score, b, h, q, k):
        return net(score, b, h, q, k) * heads[h]

    def outer(score, b, h, q, k, half=factor):
        return inner(score, b, h, q, k) + half * (q - k)

    def both(score, b, h, q, k):
        return score * derived[h] + heads[h] * (q - k)

    def sliced(score, b, h, q, k):
        return score + wide[h, 1:, None][0, 0] + wide[..., 2][h] * wide[1, 0]

    wide = torch.rand(HEADS, 3, dtype=torch.float64, requires_grad=True)
    part = functools.partial(scaled, {"heads": [heads]}, by=factor)

    def module(score, b, h, q, k):
        return by_hand(net, score, q, k)

    return {
        "global": (by_global, by_global, [GLOBAL]),
        "module": (net, module, own),
        "method": (net.forward, module, own),
        "partial": (part, part, [heads, factor]),
        "function in function": (
            outer,
            lambda s, b, h, q, k: by_hand(net, s, q, k) * heads[h] + factor * (q - k),
            [*own, heads, factor],
        ),
        "part of a graph": (both, both, [heads]),
        "slices": (
            sliced,
            lambda s, b, h, q, k: s + wide[h, 1] + wide[h, 2] * wide[1, 0],
            [wide],
        ),
    }


@pytest.mark.parametrize("name", captures())
def test_gradients_reach_whatever_is_captured(name):
    """Globals, modules, bound methods, partials, containers, defaults, functions in functions."""
    mod, formula, captured = captures()[name]
    q, k, v = tensors(lengths=(37, 37))
    inputs = [q, k, v, *captured]
    found = run(Case(causal, mod), q, k, v, block_mask(Case(causal), lengths=(37, 37)))
    expected = dense(Case(causal, formula), q, k, v)
    assert_close(found[0], expected[0], 1e-10)
    for one, other in zip(gradients(found, inputs), gradients(expected, inputs), strict=True):
        assert_close(one, other, 1e-10)


def test_a_loop_may_go_on_before_the_backward_pass():
    """A closure is kept as it was: each layer is differentiated with its own number."""
    q, k, _v = tensors(lengths=(20, 20))
    weights = torch.rand(3, dtype=torch.float64, requires_grad=True)
    out = expected = q
    for layer in range(3):

        def mod(score, b, h, i, j):
            return score * weights[layer] * (layer + 1)  # noqa: B023

        out = foveal.flex_attention(out, k, k, mod)
        scores = (expected @ k.mT) * 8**-0.5 * weights[layer] * (layer + 1)
        expected = scores.softmax(-1) @ k
    layer = 0
    ours, theirs_ = (
        torch.autograd.grad(x.square().sum(), [q, k, weights]) for x in (out, expected)
    )
    for one, other in zip(ours, theirs_, strict=True):
        assert_close(one, other, 1e-10)


def test_what_is_changed_meanwhile_is_an_error():
    """Tensors changed in place, attributes and globals set anew before the backward pass."""
    q, k, v = tensors(lengths=(20, 20))
    noise = torch.rand(20, 20, dtype=torch.float64)
    out = foveal.flex_attention(q, k, v, lambda s, b, h, i, j: s + noise[i, j])
    noise.zero_()
    with pytest.raises(RuntimeError, match="score_mod captures was changed"):
        out.sum().backward()

    class Holder:
        factor = 2.0

        def mod(self, s, b, h, i, j):
            return s * self.factor

    holder = Holder()
    holder.factor = 3.0
    out = foveal.flex_attention(q, k, v, holder.mod)
    holder.factor = 4.0
    with pytest.raises(RuntimeError, match="score_mod captures was changed"):
        out.sum().backward()
    out = foveal.flex_attention(q, k, v, holder.mod)
    out.sum().backward()  # a new call sees the new value


# -- under other things -------------------------------------------------------------------------


def test_second_derivatives():
    """Right, captured tensors included."""
    q, k, v = tensors(lengths=(23, 23))
    case = Case(causal, t5)
    mask = block_mask(Case(causal), lengths=(23, 23))
    inputs = [q, k, v, table]
    found = []
    for out in (run(case, q, k, v, mask)[0], dense(case, q, k, v)[0]):
        first = torch.autograd.grad(out.square().sum(), inputs, create_graph=True)
        total = sum((x * x).sum() for x in first)
        found.append(torch.autograd.grad(total, inputs))
    for one, other in zip(*found, strict=True):
        assert_close(one, other, 1e-9)


def test_transforms_of_torch_func():
    """torch.func.grad, vmap over a stack of queries, and forward mode."""
    q, k, v = (x.detach() for x in tensors(lengths=(23, 23)))
    mask = block_mask(Case(causal), lengths=(23, 23))

    def loss(q):
        return foveal.flex_attention(q, k, v, softcap, mask).square().sum()

    def formula(q):
        return dense(Case(causal, softcap), q, k, v)[0].square().sum()

    assert_close(torch.func.grad(loss)(q), torch.func.grad(formula)(q), 1e-10)
    many = torch.stack([q, 2 * q])
    assert_close(torch.func.vmap(loss)(many), torch.stack([formula(x) for x in many]), 1e-10)
    pairs = [torch.func.jvp(one, (q,), (k,)) for one in (loss, formula)]
    for one, other in zip(*pairs, strict=True):
        assert_close(one, other, 1e-10)


@pytest.mark.parametrize("masked", [True, False])
def test_several_gradients_at_once(masked):
    """Batched gradients, as of vectorised Jacobians, are those that come one by one."""
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, 2, 10, 4, dtype=torch.float64))
    slopes = torch.rand(2, dtype=torch.float64, requires_grad=True)

    def run(q, k, v, slopes):
        mask = P.SlidingWindow(4).block_mask(10, 16) if masked else None
        mod = lambda s, b, h, i, j: s - slopes[h] * (i - j).abs()  # noqa: E731
        return foveal.flex_attention(q, k, v, mod, mask)

    leaves, seeds = (q, k, v, slopes), torch.randn(3, 1, 2, 10, 4, dtype=torch.float64)
    out = run(*leaves)
    want = [torch.autograd.grad(out, leaves, one, retain_graph=True) for one in seeds]
    got = torch.autograd.grad(out, leaves, seeds, is_grads_batched=True)
    for many, each in zip(got, zip(*want, strict=True), strict=True):
        torch.testing.assert_close(many, torch.stack(each))


def test_autocast_computes_in_its_dtype():
    """As torch's: products in the dtype of autocast, mods outside of it."""
    q, k, v = tensors(torch.float32)
    case = CASES["alibi"]
    with torch.autocast("cpu", torch.bfloat16):
        out, lse = run(case, q, k, v, block_mask(case))
        out.float().sum().backward()
    expected, _ = run(case, *(x.bfloat16() for x in (q, k, v)), block_mask(case))
    assert out.dtype == torch.bfloat16
    assert lse.dtype == torch.float32
    assert bool((out == expected).all())
    assert q.grad is not None
    assert q.grad.dtype == torch.float32


def test_without_gradients_nothing_is_kept():
    """no_grad and inference mode give the same numbers, of which no graph knows."""
    q, k, v = tensors()
    case = CASES["T5, causal documents"]
    mask = block_mask(case)
    expected, _ = run(case, q, k, v, mask)
    with torch.no_grad():
        out, _ = run(case, q, k, v, mask)
    assert not out.requires_grad
    assert bool((out == expected).all())
    with torch.inference_mode():
        assert bool((run(case, q, k, v, mask)[0] == expected).all())


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_the_compiler_is_stepped_aside_of():
    """A graph ends before the call; with fullgraph=True that is said."""
    q, k, v = tensors(lengths=(40, 40))
    mask = block_mask(Case(causal), lengths=(40, 40))

    def net(q):
        return foveal.flex_attention(2 * q, k, v, t5, mask) * 3

    expected = torch.autograd.grad(net(q).sum(), [q, table])
    found = torch.autograd.grad(torch.compile(net, backend="eager")(q).sum(), [q, table])
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, 1e-12)
    torch._dynamo.reset()
    with pytest.raises(Exception, match="flex_attention runs outside of graphs"):
        torch.compile(net, backend="eager", fullgraph=True)(q)


def test_a_pattern_gives_both():
    """A pattern's block_mask is a BlockMask like any other, made without looking at all pairs."""
    pattern = foveal.patterns.Neighborhood((12, 13), 5)
    q, k, v = tensors(lengths=(156, 156))
    out = foveal.flex_attention(q, k, v, block_mask=pattern.block_mask(156))
    assert_close(out, foveal.attend(q, k, v, pattern), 1e-12)


def test_auxiliary_outputs():
    """An AuxRequest is answered by an AuxOutput: the log-sum-exp and the largest score."""
    q, k, v = tensors()
    case = CASES["rows without keys, capped"]
    mask = block_mask(case)
    request = theirs.AuxRequest(lse=True, max_scores=True)
    for score in (case.score, None):
        out, aux = foveal.flex_attention(q, k, v, score, mask, return_aux=request)
        expected, lse = run(Case(case.mask, score), q, k, v, mask)
        assert_close(out, expected, 1e-12)
        assert_close(aux.lse, lse, 1e-12)
        scores = q @ k.mT / math.sqrt(8)
        scores = scores if score is None else softcap(scores, 0, 0, 0, 0)
        i = torch.arange(N)
        allowed = (i[:, None] >= i) & (i[:, None] >= 70)
        assert_close(aux.max_scores, scores.masked_fill(~allowed, -torch.inf).amax(-1), 1e-12)
    out, aux = foveal.flex_attention(q, k, v, return_aux=theirs.AuxRequest())
    assert aux == theirs.AuxOutput()


def test_nan_that_nobody_reads_reaches_nothing():
    """Padding may hold anything."""
    q, k, v = (x.detach() for x in tensors())
    case = CASES["padding"]
    expected = [run(Case(case.mask, one), q, k, v, block_mask(case))[0] for one in (None, softcap)]
    k[1, :, 101:] = torch.nan
    v[1, :, 101:] = torch.nan
    k, v, q = (x.requires_grad_() for x in (k, v, q))
    for score, other in zip((None, softcap), expected, strict=True):
        out, _ = run(Case(case.mask, score), q, k, v, block_mask(case))
        assert_close(out, other, 1e-12)
        grads = torch.autograd.grad(out.sum(), [q, k, v])
        assert all(bool(x.isfinite().all()) for x in grads)
