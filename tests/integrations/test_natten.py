"""natten's functions and modules computed by foveal: beside natten, and beside plain formulas."""

import inspect
import itertools
import random
import sys

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

import foveal.integrations.natten as ours
from foveal.testing import assert_close

CASES, PARTS = 200, 4
MOST = {1: 40, 2: 9, 3: 6}  # coordinates on an axis
MODULES = ("NeighborhoodAttention1D", "NeighborhoodAttention2D", "NeighborhoodAttention3D")


def drawn(number):
    """(size, options) of a window that natten takes too."""
    draw = random.Random(number)
    size, kernel, dilation, stride = [], [], [], []
    for _ in range(dims := 1 + number % 3):
        size.append(draw.randint(2, MOST[dims]))
        kernel.append(draw.randint(2, size[-1]))
        dilation.append(draw.randint(1, size[-1] // kernel[-1]))
        stride.append(draw.randint(1, kernel[-1]))
    causal = tuple(draw.random() < 0.4 for _ in size)
    if causal == (True,) and kernel == size:  # which natten's CPU way lacks
        causal = (False,)
    rule = {"kernel_size": kernel, "dilation": dilation, "stride": stride, "is_causal": causal}
    return tuple(size), {name: tuple(values) for name, values in rule.items()}


def additional(more):
    """Keys and values that every query reads, as natten names them."""
    return {} if more is None else {"additional_keys": more[0], "additional_values": more[1]}


def call(module, size):
    return (module.na1d, module.na2d, module.na3d)[len(size) - 1]


@pytest.fixture
def natten(monkeypatch):
    """natten, whose CPU way is FlexAttention: kept from compiling it for every shape."""
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    return pytest.importorskip(
        "natten", reason="needs natten (pip install --no-deps --no-build-isolation natten)"
    )


@pytest.mark.filterwarnings("ignore:return_lse is deprecated:FutureWarning")
@pytest.mark.parametrize("part", range(PARTS))
def test_equals_natten(natten, part):
    """One to three axes, every option of a window, grouped heads, additional keys, the lse."""
    for number in range(part, CASES, PARTS):
        size, options = drawn(number)
        torch.manual_seed(number)
        heads, kv_heads = ((2, 2), (4, 2), (3, 1))[number // 3 % 3]
        q = torch.randn(1, *size, heads, 8)
        k, v = torch.randn(2, 1, *size, kv_heads, 8)
        if number % 2:
            options |= additional(torch.randn(2, 1, 1 + number % 5, kv_heads, 8))
        want = call(natten, size)(q, k, v, return_lse=True, scale=0.3, **options)
        found = call(ours, size)(q, k, v, return_lse=True, scale=0.3, **options)
        for theirs, own in zip(want, found, strict=True):
            assert own.shape == theirs.shape
            assert own.is_contiguous() or own is not found[0]
            torch.testing.assert_close(own, theirs, rtol=0, atol=1e-5)


# -- an oracle of its own -----------------------------------------------------------------------


def window(at, side, kernel_size, dilation, stride, is_causal):
    """The coordinates that one reads, in their order, as the papers of natten describe it."""
    line = list(range(at % dilation, side, dilation))
    place = line.index(at)
    first = place - place % stride
    if is_causal:
        leader = min(first + stride - 1, len(line) - 1)
        return line[max(0, leader - kernel_size + 1) : place + 1]
    leader = min(first + stride // 2, len(line) - 1)
    start = min(max(leader - kernel_size // 2, 0), len(line) - kernel_size)
    return line[start : start + kernel_size]


def dense(q, k, v, rpb=None, key_mask=None, more=None, scale=None, **options):
    """The same by a softmax over all tokens; tensors are heads last."""
    size = q.shape[1:-2]
    count, heads = size.numel(), q.shape[-2]
    names = ("kernel_size", "dilation", "stride", "is_causal")
    rules = [[options[name][axis] for name in names] for axis in range(len(size))]
    places = list(itertools.product(*map(range, size)))
    bias = torch.full((heads, count, count), -torch.inf, dtype=q.dtype)
    for i, at in enumerate(places):
        lines = [window(a, side, *rule) for a, side, rule in zip(at, size, rules, strict=True)]
        for key in itertools.product(*lines):
            cell = tuple(
                (b - a) // rule[1] + rule[0] - 1 for a, b, rule in zip(at, key, rules, strict=True)
            )
            own = 0.0 if rpb is None else rpb[(slice(None), *cell)]
            bias[:, i, places.index(key)] = own
    q, k, v = (x.flatten(1, -3) for x in (q, k, v))
    bias = bias.expand(len(q), -1, -1, -1)
    if key_mask is not None:
        bias = bias.masked_fill(~key_mask.flatten(1)[:, None, None], -torch.inf)
    if more is not None:
        k, v = torch.cat([k, more[0]], 1), torch.cat([v, more[1]], 1)
        bias = torch.nn.functional.pad(bias, (0, more[0].shape[1]))
    k, v = (x.repeat_interleave(heads // x.shape[2], 2) for x in (k, v))
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) * (scale or q.shape[-1] ** -0.5) + bias
    dead = (logits == -torch.inf).all(-1, keepdim=True)  # a query without any key
    weights = logits.masked_fill(dead, 0.0).softmax(-1) * ~dead
    return torch.einsum("bhqk,bkhd->bqhd", weights, v).unflatten(1, size)


@pytest.mark.parametrize("number", [*range(9), 40, 41])
def test_trains_on_a_cpu(number):
    """Gradients of everything: padding, relative positions, additional keys, other head_dim."""
    size, options = drawn(number)
    torch.manual_seed(number)
    heads, kv_heads = ((2, 2), (4, 2))[number % 2]

    def leaf(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    q, k = leaf(2, *size, heads, 5), leaf(2, *size, kv_heads, 5)
    v = leaf(2, *size, kv_heads, 3)
    rpb = leaf(heads, *(2 * one - 1 for one in options["kernel_size"]))
    more = (leaf(2, 3, kv_heads, 5), leaf(2, 3, kv_heads, 3)) if number % 3 == 2 else None
    mask = torch.rand(2, *size) < 0.7
    inputs = (q, k, v, rpb, *(more or ()))
    want = dense(q, k, v, rpb, mask, more, **options)
    found = call(ours, size)(q, k, v, key_mask=mask, rpb=rpb, **options, **additional(more))
    assert_close(found, want, rtol=1e-9)
    grad = torch.randn_like(want)
    own, oracle = (torch.autograd.grad(out, inputs, grad) for out in (found, want))
    for number, pair in enumerate(zip(own, oracle, strict=True)):
        assert_close(*pair, name=f"gradient of input {number}", rtol=1e-8)


def test_padding_reaches_nothing():
    """What stands in a token that is none, NaN too, changes no output; nor in additional keys."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 6, 7, 2, 4)
    more = torch.randn(2, 2, 4, 2, 4)
    mask, kept = torch.rand(2, 6, 7) < 0.6, torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]]).bool()
    options = {"kernel_size": 3, "key_mask": mask, "additional_key_mask": kept}
    want = ours.na2d(q, k, v, **options, **additional(more))
    k, v = (x.masked_fill(~mask[..., None, None], torch.nan) for x in (k, v))
    more = more.masked_fill(~kept[..., None, None], torch.nan)
    assert ours.na2d(q, k, v, **options, **additional(more)).equal(want)


@pytest.mark.parametrize("number", [0, 1, 2, 3, 7, 8])
def test_the_two_halves_of_old_versions(number):
    """Softmax between na*_qk and na*_av is attention; causal windows, tables, additional keys."""
    size, options = drawn(number)
    options["stride"] = (1,) * len(size)
    torch.manual_seed(number)
    q, k, v = torch.randn(3, 2, *size, 2, 5, dtype=torch.float64)
    more = torch.randn(2, 2, 3, 2, 5, dtype=torch.float64) if number % 2 else None
    rpb = torch.randn(
        2, *(2 * one - 1 for one in options["kernel_size"]), dtype=torch.float64
    ).requires_grad_()
    want = dense(q, k, v, rpb, more=more, **options)
    stem, options = f"na{len(size)}d", {n: o for n, o in options.items() if n != "stride"}
    first = [x.movedim(-2, 1) for x in (q, k, v)]
    ends = [None, None] if more is None else more.transpose(2, 3).unbind()
    logits = getattr(ours.functional, f"{stem}_qk")(
        first[0] * 5**-0.5, first[1], additional_keys=ends[0], rpb=rpb, **options
    )
    found = getattr(ours.functional, f"{stem}_av")(
        logits.softmax(-1), first[2], additional_values=ends[1], **options
    )
    assert_close(found.movedim(1, -2), want, rtol=1e-10)
    grad = torch.randn_like(want)
    own, oracle = (torch.autograd.grad(out, rpb, grad)[0] for out in (found.movedim(1, -2), want))
    assert_close(own, oracle, rtol=1e-9)


def test_oldest_names():
    """natten2dqkrpb and natten2dav, with the order of their arguments."""
    q, k = torch.randn(2, 1, 2, 8, 9, 4)
    rpb = torch.randn(2, 5, 5)
    logits = ours.functional.natten2dqkrpb(q, k, rpb, 3, 2)
    assert logits.shape == (1, 2, 8, 9, 9)
    assert logits.equal(ours.functional.na2d_qk(q, k, 3, 2, rpb=rpb))
    assert ours.functional.natten2dav(logits, k, 3, 2).shape == q.shape
    line, table = torch.randn(1, 2, 9, 4), torch.randn(2, 5)
    logits = ours.functional.natten1dqkrpb(line, line, table, 3, 2)
    assert logits.equal(ours.functional.na1d_qk(line, line, 3, 2, rpb=table))
    assert ours.functional.natten1dav(logits, line, 3, 2).shape == line.shape


# -- modules ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:return_lse is deprecated:FutureWarning")
@pytest.mark.parametrize("name", MODULES)
def test_modules_of_natten(natten, name):
    """Drawn alike from one seed, state dicts load both ways, and the output is the same."""
    axes = int(name[-2])
    options = {"kernel_size": 3, "stride": 2, "dilation": (2,) * axes, "is_causal": False}
    made = []
    for module in (natten, ours):
        torch.manual_seed(3)
        made.append(getattr(module, name)(32, 4, qkv_bias=axes != 2, qk_scale=0.7, **options))
    theirs, own = made
    for weights in (theirs.state_dict(), own.state_dict()):
        assert list(weights) == list(theirs.state_dict())
    assert all(a.equal(b) for a, b in zip(theirs.parameters(), own.parameters(), strict=True))
    torch.nn.init.normal_(theirs.proj.bias)
    own.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(own.state_dict())
    x = torch.randn(2, *(7, 6, 8)[:axes], 32)
    with torch.no_grad():  # without, natten has no way on a CPU
        torch.testing.assert_close(own(x), theirs(x), rtol=0, atol=1e-5)
    for attribute in ("kernel_size", "stride", "dilation", "is_causal", "head_dim", "scale"):
        assert getattr(own, attribute) == getattr(theirs, attribute)


def test_checkpoints_with_relative_positions():
    """`rpb` of NAT and DiNAT loads where there is a place for it, and is not dropped elsewhere."""
    torch.manual_seed(0)
    with_table = ours.NeighborhoodAttention2D(
        dim=8, num_heads=2, kernel_size=3, dilation=2, rel_pos_bias=True, attn_drop=0.5
    ).eval()
    weights = with_table.state_dict()
    assert next(iter(weights)) == "rpb"
    assert weights["rpb"].shape == (2, 5, 5)
    without = ours.NeighborhoodAttention2D(8, 2, 3, dilation=2)
    with pytest.raises(RuntimeError, match="rel_pos_bias=True"):
        without.load_state_dict(weights)
    x = torch.randn(1, 7, 8, 8)
    q, k, v = with_table.qkv(x).unflatten(-1, (3, 2, 4)).unbind(-3)
    rule = {"kernel_size": (3, 3), "dilation": (2, 2), "stride": (1, 1)}
    out = dense(q, k, v, with_table.rpb, **rule, is_causal=(False, False))
    assert_close(with_table(x), with_table.proj(out.flatten(-2)), rtol=1e-5)
    with_table.train()
    assert not with_table(x).equal(with_table(x))  # drops weights


def test_what_natten_dropped(natten):
    """`register` gives it back, so that code which imports it runs; the rest stays natten's."""
    theirs = sys.modules["natten.functional"]
    na2d, added = theirs.na2d, ours.register()
    try:
        assert {"natten2dqkrpb", "natten2dav", "na2d_qk", "na3d_av"} <= set(added)
        assert theirs.na2d is na2d
        assert ours.register() == []
        from natten.functional import natten2dav

        assert natten2dav is ours.functional.natten2dav
    finally:
        for name in added:
            delattr(theirs, name)


# -- dense attention, and merging ---------------------------------------------------------------


@pytest.mark.parametrize("is_causal", [False, True])
def test_dense_attention(is_causal):
    """As SDPA computes it, grouped heads and other lengths included; the lse merges."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 5, 4, 8), torch.randn(2, 9, 2, 8), torch.randn(2, 9, 2, 3)
    out, lse = ours.attention(q, k, v, is_causal=is_causal, return_lse=True, backend="flex-fmha")
    want = scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), is_causal=is_causal, enable_gqa=True
    )
    assert_close(out, want.transpose(1, 2), rtol=1e-5)
    assert out.shape == (2, 5, 4, 3)
    assert lse.shape == (2, 5, 4)
    if not is_causal:
        parts = [
            ours.attention(q, k[:, a], v[:, a], return_lse=True)
            for a in (slice(4), slice(4, 6), slice(6, 9))
        ]
        merged = ours.merge_attentions(*zip(*parts, strict=True))
        assert_close(merged[0], out, rtol=1e-5)
        assert_close(merged[1], lse, rtol=1e-5)


@pytest.mark.parametrize("is_causal", [False, True])
def test_sequences_side_by_side(is_causal):
    """Each as it would be alone, given by lengths or by borders."""
    torch.manual_seed(0)
    lengths = torch.tensor([3, 1, 6], dtype=torch.int32)
    q, k, v = torch.randn(3, 1, 10, 2, 8)
    want = [
        ours.attention(*(x[:, a:b] for x in (q, k, v)), is_causal=is_causal, return_lse=True)
        for a, b in ((0, 3), (3, 4), (4, 10))
    ]
    options = {"is_causal": is_causal, "return_lse": True}
    by_length = ours.attention(q, k, v, seqlens_Q=lengths, seqlens_KV=lengths, **options)
    borders = torch.tensor([0, 3, 4, 10], dtype=torch.int32)
    by_border = ours.attention(
        q,
        k,
        v,
        cumulative_seqlen_Q=borders,
        cumulative_seqlen_KV=borders,
        max_seqlen_Q=6,
        max_seqlen_KV=6,
        **options,
    )
    for i in (0, 1):
        assert_close(by_length[i], torch.cat([one[i] for one in want], 1), rtol=1e-5)
        assert by_length[i].equal(by_border[i])


# -- the door -----------------------------------------------------------------------------------


def parameters(function):
    return list(inspect.signature(function).parameters.values())


@pytest.mark.parametrize("name", ["na1d", "na2d", "na3d", "attention", "merge_attentions"])
def test_signatures_of_functions(natten, name):
    """Every call of natten's works: its names, in its order, with its defaults."""
    theirs, own = parameters(getattr(natten, name)), parameters(getattr(ours, name))
    assert [(p.name, p.default) for p in own[: len(theirs)]] == [
        (p.name, p.default) for p in theirs
    ]
    assert all(p.kind == p.KEYWORD_ONLY for p in own[len(theirs) :])


def test_names_of_natten(natten):
    """All that natten exports, but for its version and the lists of its kernels' tiles."""
    lacking = {name for name in natten.__all__ if not hasattr(ours, name)}
    assert all(name == "__version__" or "_configs_for_" in name for name in lacking)
    with pytest.raises(AttributeError, match="foveal chooses"):
        _ = ours.get_configs_for_cutlass_fna
    for name in MODULES:
        theirs, own = parameters(getattr(natten, name)), parameters(getattr(ours, name))
        assert [p.name for p in own[: len(theirs)]] == [p.name for p in theirs]


def test_needs_no_natten(monkeypatch):
    """It imports without; only `register` asks for it, in one line."""
    for name in [n for n in sys.modules if n.partition(".")[0] == "natten"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "natten", None)
    for name in [n for n in sys.modules if n.startswith("foveal.integrations.natten")]:
        monkeypatch.delitem(sys.modules, name)
    from foveal.integrations.natten import na1d, register

    assert na1d(*torch.randn(3, 1, 4, 1, 2), 3).shape == (1, 4, 1, 2)
    with pytest.raises(ModuleNotFoundError, match="pip install natten") as caught:
        register()
    assert "\n" not in str(caught.value)


def test_switches_are_remembered():
    """They choose among natten's kernels, and change nothing here."""
    ours.use_deterministic_algorithms(True)
    assert ours.are_deterministic_algorithms_enabled()
    ours.use_deterministic_algorithms(False)
    ours.allow_flex_compile(True, backprop=True)
    assert ours.is_flex_compile_backprop_allowed()
    ours.disable_flex_compile()
    assert not ours.is_flex_compile_allowed()
    ours.set_memory_usage_preference("strict")
    assert ours.is_memory_usage_strict()
    with pytest.raises(ValueError, match="did you mean 'default'"):
        ours.set_memory_usage_preference("defualt")
    ours.set_memory_usage_preference()
    assert ours.is_memory_usage_default()


MAP = (1, 8, 9, 2, 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kernel_size": 9}, r"kernel_size=\(9, 9\), dilation=\(1, 1\) for \(8, 9\)"),
        ({"kernel_size": 3, "dilation": (3, 1)}, r"at most the size"),
        ({"kernel_size": 3, "stride": 4}, "stride must be at most kernel_size"),
        ({"kernel_size": (3, 3, 3)}, r"kernel_size must be an int or \(height, width\)"),
        ({"kernel_size": 3, "is_causal": (True,)}, "a bool for each"),
        ({"kernel_size": 0}, "at least 1"),
        ({"kernel_size": 3, "backend": "cutlas-fna"}, "did you mean 'cutlass-fna'"),
        ({"kernel_size": 3, "kernel_schedule": "fast"}, "'coop'"),
        ({"kernel_size": 3, "attention_kwargs": {"bakend": None}}, "did you mean 'backend'"),
        ({"kernel_size": 3, "rpb": torch.zeros(2, 5, 3)}, r"= \(2, 5, 5\), got \(2, 5, 3\)"),
        ({"kernel_size": 3, "key_mask": torch.ones(1, 72).bool()}, r"\(1, 8, 9\), True for a"),
        ({"kernel_size": 3, "additional_keys": torch.zeros(1, 2, 2, 4)}, "given together"),
    ],
)
def test_refusals(options, words):
    """One line that names the argument, what it was and what it should be."""
    with pytest.raises(ValueError, match=words) as caught:
        ours.na2d(*torch.randn(3, *MAP), **options)
    assert "\n" not in str(caught.value)


def test_wrong_layouts():
    """Heads first, another rank, other tokens: said with natten's layout."""
    first = torch.randn(3, 1, 2, 8, 9, 4)
    with pytest.raises(ValueError, match=r"x\.movedim\(1, -2\) is natten's layout"):
        ours.na2d(*first, 5)
    with pytest.raises(ValueError, match=r"na2d takes .* \(batch, height, width, heads"):
        ours.na2d(*torch.randn(3, 1, 72, 2, 4), 5)
    with pytest.raises(ValueError, match="the same tokens"):
        ours.na2d(torch.randn(MAP), *torch.randn(2, 1, 8, 8, 2, 4), 3)
    with pytest.raises(TypeError, match="query must be a tensor"):
        ours.na1d(None, None, None, 3)
    with pytest.raises(ValueError, match=r"x must be \(batch, height, width, embed_dim\)"):
        ours.NeighborhoodAttention2D(8, 2, 3)(torch.randn(1, 72, 8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    """Near to float32, laid out as the input is, and with a table in another precision."""
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 8, 9, 3, 2, 16).to(dtype).unbind(3)
    rpb, more = torch.randn(2, 5, 5), torch.randn(2, 2, 3, 2, 16).to(dtype)
    found, lse = ours.na2d(q, k, v, 3, rpb=rpb, return_lse=True, **additional(more))
    wide = additional(more.float())
    want = ours.na2d(*(x.float() for x in (q, k, v)), 3, rpb=rpb, **wide)
    assert found.dtype == dtype
    assert lse.dtype == torch.float32
    assert_close(found.float(), want, rtol=2e-2)


def test_odd_tensors():
    """No batch, tensors that are views from anywhere, one token on an axis."""
    q, k, v = torch.randn(3, 0, 6, 7, 2, 4, requires_grad=True).unbind()
    assert ours.na2d(q, k, v, 3).shape == (0, 6, 7, 2, 4)
    x = torch.randn(4, 2, 9, 2, 8, 3).permute(5, 1, 2, 4, 3, 0)[:, :, ::1, ::2]
    copies = [one.contiguous() for one in x]
    assert_close(ours.na2d(*x, (3, 4)), ours.na2d(*copies, (3, 4)), rtol=1e-6)
    alone = torch.randn(3, 1, 1, 7, 2, 4)
    assert_close(ours.na2d(*alone, (1, 3))[:, 0], ours.na1d(*alone.squeeze(2), 3), rtol=1e-6)


def test_compiles_whole():
    """A module with its table is one graph."""
    torch.manual_seed(0)
    module, x = ours.NeighborhoodAttention2D(8, 2, 3, rel_pos_bias=True), torch.randn(1, 6, 7, 8)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert_close(compiled(x), module(x), rtol=1e-5)
