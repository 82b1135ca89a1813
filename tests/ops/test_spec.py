"""A pattern in a graph: a description from which an equal one is built, or one clear error."""

import enum
from dataclasses import dataclass, field

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import foveal
from foveal import patterns as P
from foveal.ops import spec
from foveal.patterns.base import Pattern
from foveal.testing import assert_close


class Mode(enum.Enum):
    PAST = "past"
    NEAR = "near"


@dataclass(frozen=True)
class Held(Pattern):
    held: object

    def allows(self, q_idx, k_idx):
        if isinstance(self.held, torch.Tensor):
            return self.held[q_idx] == self.held[k_idx]
        if isinstance(self.held, Mode):
            return k_idx <= q_idx if self.held is Mode.PAST else k_idx == q_idx
        reach = self.held[0] if isinstance(self.held, tuple) else self.held
        return (q_idx - k_idx).abs() < float(reach)


@dataclass(frozen=True, kw_only=True)
class Derived(Pattern):
    window: int
    half: int = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "half", self.window // 2)

    def allows(self, q_idx, k_idx):
        return (q_idx - k_idx).abs() < self.half


def redefined(step):
    @dataclass(frozen=True)
    class Again(Pattern):
        text: str = "#0@'"

        def allows(self, q_idx, k_idx):
            return (q_idx - k_idx) % step == 0

    return Again()


# the same in every worker: what was drawn before may differ
LAYOUTS = torch.rand(2, 10, 10, generator=torch.Generator().manual_seed(0)) < 0.5
SAME = [
    P.SlidingWindow(3, causal=False),
    P.Halo((5, 8), 2, 1),
    P.BlockSparse.bigbird(40, 4),
    P.BlockSparse(LAYOUTS, 4) | P.SlidingWindow(3),
    P.TextImage(8, P.Axial((4, 8), causal=True)),
    Held(2.5),
    Held(float("inf")),
    Held(True),
    Held((3, (None, "x"))),
    Held(Mode.PAST),
    Derived(window=9),
    redefined(2),
    redefined(5),
]


@pytest.mark.parametrize("pattern", SAME, ids=repr)
def test_there_and_back(pattern):
    """A description gives back an equal pattern of the very class."""
    again = spec.rebuild(*spec.describe(pattern))
    assert again == pattern
    assert type(again) is type(pattern)
    assert torch.equal(again.mask(40), pattern.mask(40))


def test_tensors_travel_by_value():
    """A pattern made of a tensor is built again from its content."""
    pattern = Held(torch.arange(40) // 7)
    again = spec.rebuild(*spec.describe(pattern))
    assert torch.equal(again.mask(40), pattern.mask(40))


@pytest.mark.parametrize(
    "held", [lambda q, k: q >= k, [1, 2], {"a": 1}], ids=["function", "list", "dict"]
)
def test_what_no_text_can_stand_for_is_named(held):
    """The error names the field, and what it may be."""
    with pytest.raises(ValueError, match=r"Held\.held must be a number"):
        spec.describe(Held(held))


def test_a_ticket_is_good_for_one_call():
    """An eager call lends the very object, whatever happens inside."""
    pattern = Held(lambda q, k: q >= k)
    ticket = spec.lend(pattern)
    assert spec.rebuild(ticket, []) is pattern
    spec.take_back(ticket)
    assert not spec._KEPT
    q = torch.randn(1, 1, 40, 4)
    with pytest.raises((RuntimeError, IndexError)):
        foveal.attend(q, q, q, Held(torch.zeros(3, 3)), impl="tiled")
    assert not spec._KEPT


def test_a_traced_graph_carries_its_pattern():
    """Graphs run after their call: patterns that are gone or defined anew stay what they were."""
    q = torch.randn(1, 2, 40, 4)

    def attention(pattern):
        return lambda q: foveal.attend(q, q, q, pattern, impl="tiled")

    for pattern in (redefined(3), P.BlockSparse.bigbird(40, 4), Held(2.5)):
        want = attention(pattern)(q)
        graph = make_fx(attention(pattern))(q)
        del pattern
        redefined(7)
        assert_close(graph(q), want)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("early", [False, True])
def test_every_kind_of_trace_is_seen(mode, early):
    """Whichever way a graph is recorded, it holds no ticket of the call."""
    q = torch.randn(1, 2, 70, 4)

    def attention(q):
        return foveal.attend(q, q, q, P.SlidingWindow(9), impl="tiled")

    graph = make_fx(attention, tracing_mode=mode, pre_dispatch=early)(q)
    assert_close(graph(q), attention(q))


def test_compiled_calls_tell_patterns_apart():
    """One compiled function, several patterns: each call gets its own."""
    q = torch.randn(1, 2, 40, 4)

    def attention(q, pattern):
        return foveal.attend(q, q, q, pattern, impl="tiled")

    compiled = torch.compile(attention, fullgraph=True, backend="eager")
    layouts = [P.BlockSparse(torch.eye(10) + torch.rand(10, 10).round(), 4) for _ in range(2)]
    for pattern in (Held(2.5), Held(Mode.PAST), Held(Mode.NEAR), *layouts, redefined(2)):
        assert_close(compiled(q, pattern), attention(q, pattern))
