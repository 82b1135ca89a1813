"""A call told by a glance: like the latest of its pattern in all, and missed by nobody."""

import dataclasses
import inspect
import pickle

import pytest
import torch
from known_calls import LENGTH, PATTERN, PATTERNS, attend, glanced, inputs
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import foveal
from foveal import patterns as P
from foveal.ops import glance, known
from foveal.ops.glance import LATEST
from foveal.testing import assert_close


@pytest.fixture(autouse=True)
def forgotten():
    known.CALLS.clear()
    yield
    known.CALLS.clear()


def test_the_latest_call_of_a_pattern_is_told_by_a_glance():
    """From the third on; another size, dtype, gradient, scale or option takes another look."""
    tensors = inputs()
    assert [glanced(*tensors) for _ in range(4)] == [False, False, True, True]
    assert glanced(*[x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors])
    assert glanced(*tensors, scale=0.3)
    graded = [x.clone().requires_grad_() for x in tensors]
    others = [
        ([x[:1] for x in tensors], {}),
        ([x[:, :, :40] for x in tensors], {}),
        ([x.double() for x in tensors], {}),
        (graded, {}),
        ([*graded[:1], *tensors[1:]], {}),
        ([tensors[0], tensors[1], tensors[1]], {}),
        (tensors, {"impl": "tiled"}),
        (tensors, {"scale": -0.3}),
        (tensors, {"dropout_p": 0.5}),
        (tensors, {"return_lse": True}),
    ]
    for given, options in others:
        assert not glanced(*given, **options)
        out = attend(*given, **options)
        out = out[0] if options.get("return_lse") else out
        assert out.requires_grad == any(x.requires_grad for x in given)
        assert out.dtype == given[0].dtype
        attend(*tensors)
        assert glanced(*tensors)
    for _ in range(3):
        attend(*graded)
    assert glanced(*graded)
    with torch.no_grad():
        assert not glanced(*graded)
        assert not attend(*graded).requires_grad
    assert attend(*graded).requires_grad
    with torch.inference_mode():
        assert attend(*tensors).is_inference()


class Named(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen.append(getattr(func, "__name__", ""))
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("unforced")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [16, 8, 4])  # SDPA's own factor is 8 ** -0.5 but for rounding
@pytest.mark.parametrize("pattern", PATTERNS[:3], ids=repr)
def test_a_call_that_is_one_of_torchs_is_made_at_once(pattern, dim, dtype):
    """The bits of the first, its derivatives, and seen by who looks on, as the long way is."""
    g = torch.Generator().manual_seed(1)
    given = [torch.randn(2, 2, LENGTH, dim, generator=g, dtype=dtype) for _ in "qkv"]
    given = [x.requires_grad_() for x in given]
    weight = torch.randn(2, 2, LENGTH, dim, generator=g, dtype=dtype)

    def call(impl="dense", **options):
        return foveal.attend(*given, pattern, impl=impl, **options)

    def first(out):
        return [out, *torch.autograd.grad(out, given, weight)]

    want = first(call())
    call()
    one = LATEST[id(pattern)]
    ((found, _),) = known.CALLS.results.values()
    assert (glance._alone(found.run, dim) is None) == (dim == 8)
    for options in ({}, {"scale": dim**-0.5}):
        assert all(map(torch.equal, first(call(**options)), want))
    assert_close(call(scale=0.4), call("reference", scale=0.4), rtol=1e-5)
    for out in (call(), call()):  # a backward pass that is differentiated, and one that is not
        grads = torch.autograd.grad(out, given, weight, create_graph=True)
        again = torch.autograd.grad(sum(x.sin().sum() for x in grads), given)
        reference = torch.autograd.grad(call("reference"), given, weight, create_graph=True)
        right = torch.autograd.grad(sum(x.sin().sum() for x in reference), given)
        for got, wanted in zip(again, right, strict=True):
            assert_close(got, wanted, rtol=1e-3 if dtype == torch.float32 else 1e-9)
        assert all(map(torch.equal, first(call()), want))
    with Named() as mode:
        assert torch.equal(call(), want[0])
    assert "scaled_dot_product_attention" in mode.seen
    assert LATEST[id(pattern)] is one
    del one
    own = dataclasses.replace(pattern)
    for _ in range(3):
        assert torch.equal(foveal.attend(*given, own, impl="dense"), want[0])
    assert id(own) in LATEST
    where = id(own)
    del own
    assert where not in LATEST


class Ops(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


def dispatched(call):
    with Ops() as mode:
        call()
    return mode.seen


def counted(call):
    with FlopCounterMode(display=False) as mode:
        call()
    return mode.get_total_flops()


def recorded(call, **options):
    graph = make_fx(lambda q, k, v: call(q, k, v), **options)(*call.tensors).graph
    return [node.target for node in graph.nodes if node.op == "call_function"]


def profiled(call):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        call()
    return sorted(event.name for event in found.events() if "flash" in event.name)


LOOKERS = {
    "modes": dispatched,
    "counted": counted,
    "recorded": recorded,
    "recorded early": lambda call: recorded(call, pre_dispatch=True),
    "profiled": profiled,
}


@pytest.mark.usefixtures("unforced")
@pytest.mark.filterwarnings("ignore")  # of the profiler
@pytest.mark.parametrize("look", LOOKERS.values(), ids=LOOKERS)
@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_who_looks_on_sees_a_call_told_by_a_glance(causal, grad, look):
    """What is torch's own call is seen, counted and recorded as on the long way."""
    pattern = P.Full(causal=causal)

    tensors = [torch.randn(1, 2, LENGTH, 16, requires_grad=grad) for _ in "qkv"]

    def call(*given):
        return foveal.attend(*(given or tensors), pattern)

    call.tensors = tensors
    want = look(call)
    assert want
    for _ in range(3):
        call()
    assert id(pattern) in LATEST
    assert look(call) == want
    assert id(pattern) in LATEST


@pytest.mark.usefixtures("unforced")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pattern", PATTERNS[:3], ids=repr)
def test_derivatives_of_plain_operations_are_torchs_own(pattern, dtype):
    """Where SDPA is told to be plain operations, before a call is known and when it is."""
    g = torch.Generator().manual_seed(2)
    given = [torch.randn(2, 2, LENGTH, 16, generator=g, dtype=dtype) for _ in "qkv"]
    given = [x.requires_grad_() for x in given]

    def penalty(**options):
        out = foveal.attend(*given, pattern, **options)
        grads = torch.autograd.grad(out.sin().sum(), given, create_graph=True)
        return [out, *torch.autograd.grad(sum(x.sin().sum() for x in grads), given)]

    want = penalty(impl="reference")
    for backend in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH):
        with sdpa_kernel([backend]):
            for _ in range(3):
                got = penalty(impl="dense")
        assert ("ScaledDot" in got[0].grad_fn.name()) == (backend != SDPBackend.MATH)
        for one, right in zip(got, want, strict=True):
            assert_close(one, right, rtol=1e-3 if dtype == torch.float32 else 1e-9)


def test_a_call_told_by_a_glance_is_checked_and_called_as_it_says():
    """Names of options, their number and their kinds: what is wrong stays so when it is known."""
    tensors, named = inputs(), {"bias": None, "key_mask": None, "dropout_p": 0.0, "sinks": None}
    for _ in range(3):
        want = attend(*tensors)
    assert glanced(*tensors, **named, softcap=None, scale=None, q_offset=0, return_lse=False)
    q, k, v = tensors
    assert torch.equal(foveal.attend(v=v, pattern=PATTERN, q=q, k=k), want)
    for call, words in (
        (lambda: attend(*tensors, biass=None), r"attend\(\) got .*'biass'"),
        (lambda: foveal.attend(*tensors), r"attend\(\) missing .*'pattern'"),
        (lambda: foveal.attend(*tensors, PATTERN, None), r"attend\(\) takes 4"),
        (lambda: foveal.attend(*tensors, PATTERN, q=q), r"attend\(\) got multiple"),
        (lambda: attend(*tensors, q_offset=0.0), "q_offset"),
        (lambda: attend(*tensors, dropout_p=False), "dropout_p"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            call()
    assert list(inspect.signature(foveal.attend).parameters)[:5] == [
        "q",
        "k",
        "v",
        "pattern",
        "bias",
    ]
    assert pickle.loads(pickle.dumps(foveal.attend)) is foveal.attend


def test_patterns_that_are_made_for_each_call_are_not_learned_for_ever():
    """Nor kept alive; equal ones that stay are each told by a glance."""
    tensors = inputs()
    for _ in range(300):
        foveal.attend(*tensors, P.SlidingWindow(9))
        assert len(LATEST) <= glance.MOST_PATTERNS
    assert not LATEST  # whose ids may be those of others now
    known.CALLS.clear()
    layers = [P.SlidingWindow(9) for _ in range(4)]
    for _ in range(2):
        [foveal.attend(*tensors, layer) for layer in layers]
    assert all(glanced(*tensors, pattern=layer) for layer in layers)
    known.CALLS.clear()
    assert not any(glanced(*tensors, pattern=layer) for layer in layers[:1])


@pytest.mark.parametrize("other", [P.Full, lambda: P.SlidingWindow(2), lambda: P.Strided(4)])
def test_a_pattern_at_the_place_of_one_that_is_gone_is_no_other(other):
    """Many equal patterns are told by a glance, and none of them when they are gone."""
    tensors, before = inputs(), len(glance._WATCHED)
    layers = [P.SlidingWindow(9) for _ in range(40)]  # as in copies of a model
    for layer in layers:
        for _ in range(3):
            foveal.attend(*tensors, layer)
    assert len(LATEST) == 40
    del layer, layers
    assert not LATEST
    assert len(glance._WATCHED) <= before
    want = foveal.attend(*tensors, other(), impl="reference")
    new = [other() for _ in range(80)]  # some of which stand where those stood
    for one in new:
        assert_close(foveal.attend(*tensors, one), want, 1e-5)
