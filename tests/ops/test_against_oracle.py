"""Random calls of attend() beside a formula that is written here and shares no code with ops/.

A case is drawn from its number: a pattern (nested ones too), an implementation, dtypes, odd sizes,
grouped heads, padding, temperatures, biases, tables, sinks, a soft-cap, an offset of the queries,
strided views, keys that are NaN or infinite where nobody may read them, another default dtype.
Outputs, log-sum-exp and all gradients are compared.

The suite runs 200 cases. More, or others, or one that failed:

    FOVEAL_CASES=3000 FOVEAL_SEED=7 python -m pytest tests/ops/test_against_oracle.py -q
    FOVEAL_CASE=7-1234 python -m pytest tests/ops/test_against_oracle.py -q
"""

from __future__ import annotations

import math
import os
import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from drawn_patterns import any_pattern, packed_pattern
from oracle import Case, compare, differ, document_of, formula, listed_row, readable
from torch import Tensor

import foveal
from foveal import patterns as P
from foveal.ops import TableBias, WindowBias

COUNT = int(os.environ.get("FOVEAL_CASES", "200"))
SEED = os.environ.get("FOVEAL_SEED", "0")
PACKS = COUNT // 8
PARTS = 20
WORDS = [os.environ["FOVEAL_CASE"]] if "FOVEAL_CASE" in os.environ else None

# -- cases --------------------------------------------------------------------------------------


def draw_case(word: str, packed: bool = False) -> Case:
    """The case of this word; the same on every machine where the same implementations are.

    packed: of a row of documents.
    """
    draw = random.Random(word)
    heads = draw.choice((1, 2, 4, 6))
    pattern, n_keys = packed_pattern(draw) if packed else any_pattern(draw, heads)
    torch.manual_seed(draw.randrange(1 << 30))
    n_queries, offset = draw_queries(draw, pattern, n_keys)
    dtype = draw.choice((torch.float64, *[torch.float32] * 3, torch.bfloat16, torch.float16))
    batch, kv_heads = draw.randint(1, 3), draw.choice([h for h in (1, 2, 3, 6) if heads % h == 0])
    dims = draw.choice((1, 3, 8, 16, 24, 33)), draw.choice((1, 5, 8, 16, 40))
    tensors = {
        "q": random_view(draw, (batch, heads, n_queries, dims[0]), dtype),
        "k": random_view(draw, (batch, kv_heads, n_keys, dims[0]), dtype),
        "v": random_view(draw, (batch, kv_heads, n_keys, dims[1]), dtype),
    }
    options: dict[str, Any] = {}
    if draw.random() < 0.4:
        options["key_mask"] = torch.rand(batch, n_keys) > draw.choice((0.1, 0.5))
        options["key_mask"][0] &= draw.random() < 0.7
    if draw.random() < 0.3:
        options["scale"] = draw.choice((0.0, 0.3, 1, -0.7))
    elif draw.random() < 0.2:
        tensors["scale"] = draw_scale(draw, pattern, tensors["q"])
    if offset is not None:
        options["q_offset"] = offset
    if draw.random() < 0.3:
        options["softcap"] = draw.choice((0.6, 5, 50.0))
    first = total_queries(pattern, n_keys) - n_queries if offset == -1 else offset or 0
    given, rule = draw_bias(draw, pattern, tensors["q"], n_keys)
    tensors |= given
    if draw.random() < 0.3:
        tensors["sinks"] = torch.randn(heads).to(draw.choice((dtype, torch.float32)))
        if draw.random() < 0.2:
            tensors["sinks"][0] = -math.inf
    impl = draw.choice([None, None, *possible(pattern, tensors, options, n_queries, n_keys)])
    case = Case(word, pattern, tensors, impl, options, first=first, rule=rule)
    case.return_lse = impl != "dense" and draw.random() < 0.5
    if draw.random() < 0.15:
        case.default_dtype = draw.choice((torch.float64, torch.bfloat16))
    if draw.random() < 0.4:
        case = with_garbage(draw, case)
    return case


def draw_scale(draw: random.Random, pattern: P.Pattern, q: Tensor) -> Tensor:
    """A temperature of all, of heads or examples, or (single keys alone) of every query."""
    shape = [draw.choice((1, size)) for size in q.shape[:3]]
    shape[2] = 1 if isinstance(pattern, P.Pyramid) else shape[2]
    shape = [*shape, 1][draw.choice((0, 0, 1)) :] if draw.random() < 0.8 else []
    return torch.rand(shape, dtype=torch.float64).to(draw.choice((q.dtype, torch.float32))) - 0.2


def total_queries(pattern: P.Pattern, n_keys: int) -> int:
    return n_keys if isinstance(pattern, P.Pyramid) else pattern.num_queries(n_keys)


def draw_queries(draw: random.Random, pattern: P.Pattern, n_keys: int) -> tuple[int, int | None]:
    """(number of queries, q_offset or None): all of them, some, or those at the end."""
    total, kind = total_queries(pattern, n_keys), draw.random()
    coarse = isinstance(pattern, P.Pyramid) and pattern.queries == "coarse"
    if kind < 0.6 or coarse:
        return total, draw.choice((None, None, 0))
    if kind < 0.65 and pattern.heads is None and n_keys // 3 < total:
        return max(1, n_keys // 3), None
    count = draw.choice((0, min(1, total), draw.randint(0, total), draw.randint(0, total)))
    return count, draw.choice((-1, draw.randint(0, total - count)))


def possible(
    pattern: P.Pattern,
    tensors: dict[str, Tensor],
    options: dict[str, Any],
    n_queries: int,
    n_keys: int,
) -> list[str]:
    """The implementations that the docs promise for a call on a CPU."""
    pools = isinstance(pattern, P.Pyramid)
    found = ["reference", "tiled", "tiled"]
    if not (pools or "sinks" in tensors or "softcap" in options):
        found += ["dense"]
    if n_queries > total_queries(pattern, n_keys):
        found = ["reference"]
    elif foveal.ops.native.why_not("cpu", tensors["q"].dtype) is None and "table" not in tensors:
        found += ["native", "native", "native"]
    return found


def random_view(draw: random.Random, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Normal numbers, laid out as they may come: by head, by token, with gaps, repeated."""
    batch, heads, length, dim = shape
    kind = draw.choice(("plain", "token", "gaps", "expanded", "reversed"))
    if kind == "token":
        return (
            torch.randn(batch, length, heads, dim, dtype=torch.float64).to(dtype).transpose(1, 2)
        )
    if kind == "gaps":
        wide = torch.randn(batch, heads, 2 * length, 2 * dim, dtype=torch.float64).to(dtype)
        return wide[:, :, ::2, ::2]
    if kind == "expanded":
        return torch.randn(1, heads, length, dim, dtype=torch.float64).to(dtype).expand(shape)
    if kind == "reversed":
        x = torch.randn(dim, length, heads, batch, dtype=torch.float64)
        return x.to(dtype).permute(3, 2, 1, 0)
    return torch.randn(shape, dtype=torch.float64).to(dtype)


def draw_bias(
    draw: random.Random, pattern: P.Pattern, q: Tensor, n_keys: int
) -> tuple[dict[str, Tensor], tuple[Any, ...]]:
    """Tensors of a bias by name, and the rule of a table: "bias", "rows" and "columns" of a
    WindowBias, "table" of a TableBias, "slopes" of alibi."""
    kind, heads = draw.random(), q.shape[1]
    if isinstance(pattern, P.Pyramid):
        if kind < 0.6:
            return {}, ()
        return {"table": torch.randn(pattern.bias_size, draw.choice((1, heads)))}, ()
    if isinstance(pattern, P.Halo) and kind < 0.4 and len(pattern.window) == 2:
        sides = dict(zip(("rows", "columns"), pattern.window, strict=True))
        return {n: torch.randn(*q.shape[:3], side).to(q.dtype) for n, side in sides.items()}, ()
    if kind < 0.5:
        return {}, ()
    wide = draw.choice((q.dtype, torch.float32, torch.float64))
    if kind < 0.75 and total_queries(pattern, n_keys) == n_keys and pattern.heads is None:
        return draw_table(draw, pattern, heads, wide)
    full = (q.shape[0], heads, q.shape[2], n_keys)
    shape = [draw.choice((1, size)) for size in full][draw.choice((0, 0, 1, 2)) :]
    dtype = draw.choice((wide, torch.bfloat16))
    size = draw.choice((1.0, 1.0, 10.0, 200.0))
    bias = (torch.randn(shape, dtype=torch.float64) * size).to(dtype)
    if draw.random() < 0.4:
        lowest = draw.choice((-math.inf, torch.finfo(dtype).min))
        bias = bias.masked_fill(torch.rand(shape) < draw.choice((0.2, 0.8)), lowest)
    return {"bias": bias}, ()


def draw_table(
    draw: random.Random, pattern: P.Pattern, heads: int, dtype: torch.dtype
) -> tuple[dict[str, Tensor], tuple[Any, ...]]:
    """A table by a rule of its own, by offsets along the sequence or on the grid, or alibi."""
    kind = draw.choice(("listed", "alibi", "own", "own", "t5"))
    if kind == "alibi":
        return {"slopes": torch.rand(heads).to(dtype) / 8}, ()
    rule: tuple[Any, ...]
    if kind == "t5":
        rule = ("t5", draw.choice((4, 8, 12)), draw.choice((17, 41, 131)), draw.random() < 0.5)
        return {"table": torch.randn(rule[1], draw.choice((1, heads))).to(dtype)}, rule
    rule = ("listed",)
    if kind == "own" and pattern.bias_size is None:
        rule = ("offset", draw.randint(0, 40))
    elif kind == "own" and _counts_steps(pattern):
        rule = ("grid", pattern.size, pattern.kernel_size, pattern.dilation)
    size = {"listed": 7, "offset": 2 * rule[-1] + 1 if rule[0] == "offset" else 0}.get(rule[0])
    rows = pattern.bias_size if size is None else size
    return {"table": torch.randn(rows, draw.choice((1, heads))).to(dtype)}, rule


def _counts_steps(pattern: P.Pattern) -> bool:
    """Whether rows of its table are steps of a window around each pixel of an image."""
    near = type(pattern) is P.Neighborhood and pattern.causal is None
    return near and len(pattern.size) == 2 and pattern.stride == (1, 1)


def with_garbage(draw: random.Random, case: Case) -> Case:
    """The same case with NaN or infinity in every key and value that nobody may read."""
    k, v = case.tensors["k"], case.tensors["v"]
    unread = ~readable(case).any(1).any(1)[:, None, :, None]  # (batch, 1, keys, 1)
    poison = draw.choice((math.nan, math.inf, -math.inf))
    tensors = case.tensors | {
        "k": k.masked_fill(unread, poison),
        "v": v.masked_fill(unread, poison),
    }
    return replace(case, tensors=tensors)


# -- comparing ----------------------------------------------------------------------------------


def run(case: Case) -> list[str]:
    """Complaints about one case."""
    given = {name: x.detach().requires_grad_() for name, x in case.tensors.items()}
    torch.set_default_dtype(case.default_dtype)
    try:
        got = call(case, given)
    except Exception as error:  # which the other cases of the part shall not hide
        return [f"{type(error).__name__}: {error}"]
    finally:
        torch.set_default_dtype(torch.float32)
    exact = {name: x.detach().double().requires_grad_() for name, x in case.tensors.items()}
    want = formula(case, exact)
    complaints = compare(case, got, want)
    seed = torch.Generator().manual_seed(1)
    d_out = torch.randn(want[0].shape, generator=seed, dtype=torch.float64)
    d_lse = torch.randn(want[1].shape, generator=seed, dtype=torch.float64)
    grads = []
    for results, leaves in ((got, given), (want, exact)):
        loss = (results[0].double() * d_out).sum()
        if case.return_lse:
            lse = results[1].double()
            loss = loss + (lse.masked_fill(lse == -math.inf, 0.0) * d_lse).sum()
        if not loss.requires_grad:
            return [*complaints, "needs no gradient"]
        grads.append(torch.autograd.grad(loss, list(leaves.values()), allow_unused=True))
    for name, one, other in zip(given, *grads, strict=True):
        zero = torch.zeros_like(exact[name])
        complaints += differ(case, f"gradient of {name}", one, zero if other is None else other)
    return complaints


def call(case: Case, given: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    options: dict[str, Any] = {**case.options, "impl": case.impl}
    options |= {name: given[name] for name in ("bias", "scale", "sinks") if name in given}
    if "slopes" in given:
        options["bias"] = foveal.alibi(len(given["slopes"]), given["slopes"])
    if "rows" in given:
        options["bias"] = WindowBias(given["rows"], given["columns"])
    if case.rule[:1] == ("t5",):
        far, both_ways = case.rule[2:]
        options["bias"] = TableBias.t5(given["table"], both_ways, far)
    elif "table" in given:
        options["bias"] = TableBias(
            given["table"], listed_row if case.rule[:1] == ("listed",) else None
        )
    q, k, v = given["q"], given["k"], given["v"]
    if case.return_lse:
        return foveal.attend(q, k, v, case.pattern, return_lse=True, **options)
    return foveal.attend(q, k, v, case.pattern, **options), None


@pytest.mark.parametrize("part", range(PARTS))
def test_random_calls(part: int) -> None:
    """Whatever is drawn, attend() gives what the formula gives, and so do its gradients."""
    wrong = []
    for word in WORDS or [f"{SEED}-{at}" for at in range(part, COUNT, PARTS)]:
        case = draw_case(word)
        wrong += [f"{case}: {complaint}" for complaint in run(case)]
    assert not wrong, "\n".join(wrong)


def in_pack(word: str, impl: str) -> Case | None:
    """The case of this word, if it is one of several documents and `impl` takes it."""
    case = draw_case(word, packed=True)
    parts = (case.pattern, *getattr(case.pattern, "parts", ()))
    lengths = next((one.lengths for one in parts if hasattr(one, "lengths")), ())
    dtype = case.tensors["q"].dtype
    if sum(map(bool, lengths)) < 2 or case.tensors["q"].shape[2] > sum(lengths):
        return None
    refused = "table" in case.tensors or dtype in (torch.float64, torch.float16)
    return None if impl == "native" and refused else replace(case, impl=impl)


@pytest.mark.parametrize(
    "impl", ["tiled", *["native"] * (foveal.ops.native.build.why_not() is None)]
)
def test_documents_do_not_feel_each_other(impl: str) -> None:
    """Not a bit of a document's result or gradients changes when another one of the pack does."""
    cases = [one for at in range(PACKS) if (one := in_pack(f"pack-{at}", impl)) is not None]
    assert len(cases) > 3
    for case in cases:
        pattern = case.pattern
        pack = next(x for x in (pattern, *getattr(pattern, "parts", ())) if hasattr(x, "lengths"))
        n, m = case.tensors["q"].shape[2], case.tensors["k"].shape[2]
        queries = getattr(pack, "query_lengths", None) or pack.lengths
        longest = max(range(len(pack.lengths)), key=lambda at: pack.lengths[at])
        changed = {
            "q": document_of(queries, torch.arange(n) + case.first) == longest,
            "k": document_of(pack.lengths, torch.arange(m)) == longest,
        }
        changed["v"] = changed["k"]
        other = dict(case.tensors)
        for name, rows in changed.items():
            x = case.tensors[name]
            other[name] = torch.where(rows[:, None], torch.randn_like(x.contiguous()), x)
        found = []
        for tensors in (case.tensors, other):
            given = {name: x.detach().clone().requires_grad_() for name, x in tensors.items()}
            out, _ = call(case, given)
            loss = out.float().masked_fill(changed["q"][:, None], 0.0).square().sum()
            grads = torch.autograd.grad(loss, [given[name] for name in "qkv"], allow_unused=True)
            kept = [out, *grads]
            rows = [changed["q"], changed["q"], changed["k"], changed["k"]]
            found.append([x[:, :, ~r] for x, r in zip(kept, rows, strict=True) if x is not None])
        assert all(map(torch.equal, *found)), str(case)


def test_sixteen_threads_at_once() -> None:
    """Calls that meet in the same caches get each its own pattern's result."""
    cases = [draw_case(f"threads-{at}") for at in range(48)]
    cases = [replace(case, default_dtype=torch.float32) for case in cases]
    with ThreadPoolExecutor(16) as pool:
        for case, complaints in zip(cases, pool.map(run, cases), strict=True):
            assert not complaints, f"{case}: {complaints}"
