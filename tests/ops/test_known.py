"""The short way of a call like one before: the same bits, and left wherever anything differs."""

import threading
from dataclasses import dataclass

import pytest
import torch
from known_calls import LENGTH, PATTERN, PATTERNS, attend, glances, inputs
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import foveal
from foveal import patterns as P
from foveal.ops import known, native
from foveal.testing import assert_close, dense_attention


@pytest.fixture(autouse=True)
def forgotten():
    known.CALLS.clear()
    yield
    known.CALLS.clear()


def count():
    return len(known.CALLS.results)


def everything(tensors, pattern, grad, **options):
    """[out, gradients]"""
    if not grad:
        return [foveal.attend(*tensors, pattern, **options)]
    given = [x.clone().requires_grad_() for x in tensors]
    out = foveal.attend(*given, pattern, **options)
    return [out, *torch.autograd.grad(out.float().sin().sum(), given)]


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_the_same_bits(pattern, dtype, masked, grad):
    """The calls that follow are known, and give what the first gave, bit for bit."""
    tensors = inputs(dtype=dtype)
    options = {"key_mask": torch.arange(LENGTH) < torch.tensor([[40], [3]])} if masked else {}
    for impl in (None, "dense", "tiled"):
        if impl == "dense" and isinstance(pattern, P.Pyramid):
            continue
        for scale in (None, 0.3):
            options |= {"impl": impl, "scale": scale}
            known.CALLS.clear()
            first = everything(tensors, pattern, grad, **options)
            assert count() <= 1
            kept = count()
            for _ in range(2):  # found by its key, then by a glance
                again = everything(tensors, pattern, grad, **options)
                assert count() == kept
                assert kept or impl is None
                for one, other in zip(first, again, strict=True):
                    assert torch.equal(one, other)
            if scale is None and dtype == torch.float64 and not isinstance(pattern, P.Pyramid):
                mask = options.get("key_mask")
                want, _ = dense_attention(*tensors, pattern.mask(LENGTH), None, mask)
                assert_close(again[0], want, rtol=1e-10)


def taken(call):
    """(whether the short way was taken, the result)"""
    used, look = [], known.CALLS.find

    def watched(key):
        found = look(key)
        used.append(found is not None)
        return found

    known.CALLS.find = watched
    try:
        with glances() as seen:
            result = call()
    finally:
        del known.CALLS.find
    return bool(seen) or any(used), result


class Seen(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Watched(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Own(torch.Tensor):
    pass


def in_mode(mode):
    def call(q, k, v):
        with mode:
            return attend(q, k, v)

    return call


def forward_mode(q, k, v):
    with forward_ad.dual_level():
        out = attend(forward_ad.make_dual(q, torch.ones_like(q)), k, v)
        assert forward_ad.unpack_dual(out).tangent.any()
        return forward_ad.unpack_dual(out).primal.clone()


def scripted(q, k, v):
    """attend() itself cannot be recorded by the old tracer, but what it asks can."""
    keys = []

    def call(q, k, v):
        keys.append(known.key_of(q, k, v, PATTERN, None, None, 0.0, None, False))
        return q + k + v

    torch.jit.trace(call, (q, k, v), check_trace=False)
    assert keys == [None]
    return attend(q, k, v, scale=torch.tensor(8**-0.5))


def gradient(q, k, v):
    """torch.func.grad gives as its auxiliary value the output."""
    found = torch.func.grad(lambda q: (attend(q, k, v).sum(), attend(q, k, v)), has_aux=True)(q)
    assert found[0].any()
    return found[1]


SITUATIONS = {
    "dispatch mode": in_mode(Seen()),
    "function mode": in_mode(Watched()),
    "default device": in_mode(torch.device("cpu")),
    "profiler": in_mode(torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])),
    "subclass": lambda q, k, v: attend(q.as_subclass(Own), k, v).as_subclass(torch.Tensor),
    "vmap": lambda q, k, v: torch.func.vmap(lambda q: attend(q[None], k[:1], v[:1])[0])(q),
    "grad": gradient,
    "forward mode": forward_mode,
    "learned scale": lambda q, k, v: attend(q, k, v, scale=torch.tensor(8**-0.5)),
    "log-sum-exp": lambda q, k, v: attend(q, k, v, return_lse=True)[0],
    "bias": lambda q, k, v: attend(q, k, v, bias=torch.zeros(LENGTH, LENGTH)),
    "traced graph": lambda q, k, v: make_fx(attend)(q, k, v)(q, k, v),
    "early graph": lambda q, k, v: make_fx(attend, pre_dispatch=True)(q, k, v)(q, k, v),
    "compiler": lambda q, k, v: torch.compile(attend, backend="eager", fullgraph=True)(q, k, v),
    "script": scripted,
}


@pytest.mark.usefixtures("unforced")
@pytest.mark.filterwarnings("ignore")  # of jit.trace and the profiler
@pytest.mark.parametrize("name", SITUATIONS)
def test_it_is_left_where_a_call_is_out_of_the_ordinary(name):
    """Modes, transforms, traces, kinds of tensors and options: the long way, and right."""
    q, k, v = inputs()
    k, v = k[:1].expand(2, -1, -1, -1), v[:1].expand(2, -1, -1, -1)
    want = attend(q, k, v)
    assert taken(lambda: attend(q, k, v))[0]
    before = count()
    used, got = taken(lambda: SITUATIONS[name](q, k, v))
    assert not used
    assert count() == before
    assert_close(got, want, rtol=1e-5)
    used, got = taken(lambda: attend(q, k, v))  # and what was known still holds
    assert used
    assert torch.equal(got, want)


def test_fake_tensors_meet_no_real_mask():
    """Under a FakeTensorMode, and with its tensors outside of it."""
    tensors = inputs()
    attend(*tensors)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(x) for x in tensors]
        used, out = taken(lambda: attend(*fake))
        assert not used
        assert out.shape == tensors[0].shape
    assert known.key_of(*fake, PATTERN, None, None, 0.0, None, False) is None
    for pattern in PATTERNS:
        pooled = isinstance(pattern, P.Pyramid)  # whose definition asks for values
        for impl in (None, "tiled") if pooled else (None, "tiled", "dense", "reference"):
            foveal.attend(*tensors, pattern, impl=impl)  # what this keeps is real
            out = foveal.attend(*fake, pattern, impl=impl)
            assert (type(out), out.shape) == (FakeTensor, tensors[0].shape)
        assert torch.equal(foveal.attend(*tensors, pattern), foveal.attend(*tensors, pattern))
    meta = [x.to("meta") for x in tensors]
    used, out = taken(lambda: attend(*meta))
    assert not used
    assert out.device.type == "meta"


@pytest.mark.filterwarnings("ignore")  # that trace is old; of the definition of a Pyramid
@pytest.mark.parametrize("impl", [None, "reference", "dense", "tiled", "native"])
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_a_trace_computes_what_was_traced(pattern, impl):
    """Of other values and another batch; the scale is the default one, the mask an argument."""
    if impl == "dense" and isinstance(pattern, P.Pyramid):
        pytest.skip("dense attention has no levels")
    if impl == "native" and not native.ready():
        pytest.skip("no native kernel here")
    tensors, mask = inputs(), torch.rand(2, LENGTH) < 0.8

    def call(q, k, v, mask):
        masked = foveal.attend(q, k, v, pattern, key_mask=mask, impl=impl)
        return foveal.attend(q, k, v, pattern, impl=impl) + masked

    traced = torch.jit.trace(call, (*tensors, mask))
    assert "@" not in str(traced.graph)  # a ticket is good for one call
    other = [torch.cat([x.flip(2), x]) for x in (*tensors, mask[:, None, :, None])]
    other[3] = other[3][:, 0, :, 0]
    for given in ((*tensors, mask), other):
        assert_close(traced(*given), call(*given), rtol=1e-5)


def test_autocast_is_obeyed():
    """bfloat16 inside, float32 after."""
    tensors = inputs()
    want = attend(*tensors)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            used, out = taken(lambda: attend(*tensors))
            assert out.dtype == torch.bfloat16
        used, out = taken(lambda: attend(*tensors))
        assert used
        assert torch.equal(out, want)


def test_what_is_known_in_inference_mode_trains():
    """A mask that was made there may be saved for a backward pass, and the other way round."""
    tensors = inputs()
    with torch.inference_mode():
        want = attend(*tensors)
        assert torch.equal(attend(*tensors), want)
        assert attend(*tensors).is_inference()
    out, *grads = everything(tensors, PATTERN, True)
    assert torch.equal(out, want)
    with torch.inference_mode():
        assert torch.equal(attend(*tensors), want)
    with torch.no_grad():
        used, out = taken(lambda: attend(*(x.clone().requires_grad_() for x in tensors)))
        assert used
        assert not out.requires_grad
    for one, other in zip(grads, everything(tensors, PATTERN, True)[1:], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["reference", "tiled", "dense"])
def test_the_environment_is_looked_at_every_time(name, monkeypatch):
    """FOVEAL_IMPL counts from the next call on, and until it is gone."""
    monkeypatch.delenv("FOVEAL_IMPL", raising=False)
    tensors = inputs()
    for _ in range(3):
        attend(*tensors)
    monkeypatch.setenv("FOVEAL_IMPL", name)
    used, out = taken(lambda: attend(*tensors))
    assert not used
    assert torch.equal(out, attend(*tensors, impl=name))
    monkeypatch.setenv("FOVEAL_IMPL", "quick")
    with pytest.raises(ValueError, match="quick"):
        attend(*tensors)
    monkeypatch.delenv("FOVEAL_IMPL")
    assert taken(lambda: attend(*tensors))[0]


def test_what_the_process_has_set():
    """Threads, the default dtype, deterministic algorithms and the backend of SDPA."""
    tensors = inputs()
    for _ in range(3):
        want = attend(*tensors)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert not taken(lambda: attend(*tensors))[0]
    finally:
        torch.set_num_threads(threads)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(attend(*tensors), want)
    finally:
        torch.set_default_dtype(before)
        torch.use_deterministic_algorithms(False)
    given = [x.requires_grad_() for x in tensors]
    attend(*given, impl="dense")
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        out = attend(*given, impl="dense")
    torch.autograd.grad(out.sum(), given, create_graph=True)  # which the fused kernel has not


@dataclass(frozen=True, eq=False)
class Listed(P.Pattern):
    """Reads the keys at the offsets of a list, which may change."""

    offsets: list

    def allows(self, q_idx, k_idx):
        found = q_idx == k_idx
        for one in self.offsets:
            found = found | (q_idx == k_idx + one)
        return found


def test_a_pattern_that_changes_is_another():
    """Contents count, not the object: not even where the object has taken an old one's place."""
    q, k, v = inputs(dtype=torch.float64)

    def right(pattern, impl):
        want, _ = dense_attention(q, k, v, pattern.mask(LENGTH))
        return torch.allclose(foveal.attend(q, k, v, pattern, impl=impl), want, rtol=1e-10)

    for impl in ("dense", "tiled"):
        pattern = Listed([1])
        assert right(pattern, impl)
        assert right(pattern, impl)
        pattern.offsets.append(5)
        assert right(pattern, impl)
        other = Listed([1])  # as the first was
        assert right(other, impl)
        assert right(pattern, impl)
        for number in range(1, 20):  # objects that come and go at one address
            assert right(P.SlidingWindow(number), impl)
            assert right(Listed([number]), impl)
        table = torch.zeros(3, 3, dtype=torch.bool)
        for place in range(3):
            table[place, place] = True
            assert right(P.BlockSparse(table.clone(), 16), impl)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda q, k, v: (q, k.double(), v), "dtype"),
        (lambda q, k, v: (q, k, v.to("meta")), "device"),
        (lambda q, k, v: (q, k[:, :, :-1], v), "length"),
        (lambda q, k, v: (q[0], k, v), "batch"),
        (lambda q, k, v: (q.numpy(), k, v), "tensors"),
        (lambda q, k, v: (q.long(), k.long(), v.long()), "floating"),
    ],
)
def test_wrong_calls_stay_wrong(change, words):
    """What differs from a known call by its error is not taken for it."""
    tensors = inputs()
    for _ in range(3):
        attend(*tensors)
    for _ in range(2):
        with pytest.raises((TypeError, ValueError), match=words):
            attend(*change(*tensors))
    for options in ({"scale": float("nan")}, {"scale": "1"}, {"dropout_p": False}):
        with pytest.raises((TypeError, ValueError)):
            attend(*tensors, **options)
    for options in ({"return_lse": 0}, {"impl": "quick"}, {"key_mask": torch.ones(2, LENGTH)}):
        with pytest.raises((TypeError, ValueError)):
            attend(*tensors, **options)


@pytest.mark.parametrize("scale", [-0.5, 0.0, 1, -1e-3])
@pytest.mark.parametrize("pattern", PATTERNS[:3], ids=repr)
def test_scales_that_are_not_positive(pattern, scale):
    """A causal kernel multiplies its -inf by them, so they go the long way."""
    q, k, v = inputs(dtype=torch.float64)
    foveal.attend(q, k, v, pattern)
    got = foveal.attend(q, k, v, pattern, scale=scale)
    assert_close(got, foveal.attend(q, k, v, pattern, scale=scale, impl="reference"), rtol=1e-9)


def test_views_need_not_be_known_again():
    """Strides are no part of a call's key."""
    q, k, v = inputs()
    want = attend(q, k, v)
    turned = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    spread = [x.repeat_interleave(2, -1)[..., ::2] for x in (q, k, v)]
    negative = [torch.complex(torch.zeros_like(x), -x).conj().imag for x in (q, k, v)]
    assert all(x.is_neg() for x in negative)
    for views in (turned, spread, negative):
        used, got = taken(lambda views=views: attend(*views))
        assert used
        assert_close(got, want, rtol=1e-5)


def test_threads_that_meet_are_of_one_mind():
    """Many threads at many lengths: each gets its own result."""
    calls = [(pattern, n) for pattern in PATTERNS[:3] for n in (17, 33, 48)]
    right = [foveal.attend(*inputs(n), pattern) for pattern, n in calls]
    known.CALLS.clear()
    wrong = []

    def work(seed):
        torch.set_num_threads(1)
        for turn in range(60):
            at = (turn * 7 + seed) % len(calls)
            pattern, n = calls[at]
            if not torch.allclose(foveal.attend(*inputs(n), pattern), right[at], atol=1e-6):
                wrong.append(calls[at])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not wrong


def test_what_is_kept_is_bounded():
    """A thousand lengths keep a thousand decisions and some MiB of masks, not more."""
    kept = known.Kept(entries=8, most_bytes=4 * 40)
    for number in range(100):
        kept.keep(number, (None, torch.zeros(10)))
        assert len(kept.results) <= 4
        assert kept.bytes <= 160
    for number in range(100):
        kept.keep(number, (None, None))
    assert len(kept.results) == 8
    assert known.CALLS.find("nothing") is None


@pytest.mark.parametrize("impl", ["tiled", "native"])
@pytest.mark.parametrize("pattern", [P.SlidingWindow(9), P.Halo((6, 8), 3, 1)], ids=repr)
def test_engines_give_the_same_within_an_operator_and_without(pattern, impl):
    """An ordinary call does not pass through torch's dispatcher; the bits are the operator's."""
    if impl == "native" and not native.ready():
        pytest.skip("no kernel here")
    tensors = inputs()
    key_mask = torch.arange(LENGTH) < torch.tensor([[40], [3]])
    for options in ({}, {"key_mask": key_mask}, {"bias": torch.randn(2, 1, LENGTH)}):
        options |= {"impl": impl}
        direct = everything(tensors, pattern, True, **options)
        with Seen():
            within = everything(tensors, pattern, True, **options)
        assert type(direct[0].grad_fn) is not type(within[0].grad_fn)
        for one, other in zip(direct, within, strict=True):
            assert torch.equal(one, other)
        given = [x.clone().requires_grad_() for x in tensors]
        out = foveal.attend(*given, pattern, **options)
        with Seen():  # only the backward pass
            grads = torch.autograd.grad(out.sin().sum(), given)
        for one, other in zip(grads, direct[1:], strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("impl", ["tiled", "native", "dense"])
def test_numbers_that_are_kept_negated_are_read_right(impl):
    """A view whose memory holds the negative, as gradient or as input."""
    if impl == "native" and not native.ready():
        pytest.skip("no kernel here")
    tensors = inputs()
    want = everything(tensors, PATTERN, True, impl=impl)
    views = [torch.complex(torch.zeros_like(x), -x).conj().imag for x in tensors]
    given = [x.detach().requires_grad_() for x in views]
    assert all(x.is_neg() for x in given)
    out = foveal.attend(*given, PATTERN, impl=impl)
    grad = torch.complex(torch.zeros_like(out), -out.detach().cos()).conj().imag
    assert grad.is_neg()
    for one, other in zip([out, *torch.autograd.grad(out, given, grad)], want, strict=True):
        assert_close(one, other, rtol=1e-5)
