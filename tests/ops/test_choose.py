"""The choice of an implementation: explain() tells what attend() does."""

import re

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import foveal
from foveal import patterns as P
from foveal.ops import PyramidBias, WindowBias, known
from foveal.ops.implementations import IMPLEMENTATIONS

LAYOUT = (torch.arange(8)[:, None] + torch.arange(8)) % 3 < 2
PATTERNS = [
    P.Full(),
    P.Full(causal=True),
    P.SlidingWindow(3),
    P.SlidingWindow(70, causal=False),
    P.Halo((16, 16), 4, 1),
    P.Halo((16, 16), 4, 1, 2),
    P.Axial((8, 32)) | P.Strided(7),
    P.BlockSparse(torch.stack([LAYOUT, ~LAYOUT]), 32),
    P.TextImage(56, P.Neighborhood((10, 20), 3)),
    P.Pyramid(8),
    P.Pyramid(8, causal=True),
]


calls = st.fixed_dictionaries(
    {
        "pattern": st.sampled_from(PATTERNS),
        "length": st.sampled_from([5, 64, 65, 128, 256]),
        "dtype": st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
        "batch": st.integers(1, 2),
        "heads": st.sampled_from([2, 4]),
        "kv_heads": st.sampled_from([1, 2]),
        "num_queries": st.sampled_from([None, None, None, 3, 100]),
        "bias": st.sampled_from([None, None, "keys", "pairs", "window", "table"]),
        "key_mask": st.booleans(),
        "dropout": st.sampled_from([False, False, True]),
        "return_lse": st.booleans(),
        "requires_grad": st.booleans(),
    }
)


@pytest.mark.usefixtures("unforced")
@settings(deadline=None, max_examples=300)
@given(drawn=calls)
def test_explain_agrees_with_what_runs(drawn, taken_once):
    """The implementation that explain() names is the one that attend() takes."""
    told = call_both(drawn, taken_once)
    assert taken_once == [told.impl], drawn
    assert told.reason


@pytest.fixture(scope="module")
def taken_once():
    """As `taken`, for all examples of one test."""
    patch = pytest.MonkeyPatch()
    names = []
    for name, one in IMPLEMENTATIONS.items():

        def run(call, name=name, own=one.run):
            names.append(name)
            return own(call)

        patch.setattr(one, "run", run, raising=False)
        patch.setattr(one, "prepared", lambda work: None, raising=False)
    known.CALLS.clear()
    yield names
    patch.undo()


def call_both(drawn, taken):
    """explain() and attend() of a drawn call, where it makes sense."""
    pattern, length, bias = drawn["pattern"], drawn["length"], drawn["bias"]
    if isinstance(pattern, P.Halo | P.TextImage | P.BlockSparse | P.Union):
        length = 256
    pyramid = isinstance(pattern, P.Pyramid)
    count = drawn["num_queries"] or pattern.num_queries(length)
    if pattern.num_queries(length) < length:  # it has no more than these
        count = min(count, pattern.num_queries(length))
    square = count == pattern.num_queries(length)
    heads = pattern.heads or drawn["heads"]
    fits = {
        "window": isinstance(pattern, P.Halo) and square,
        "table": pyramid,
        None: True,
    }.get(bias, not pyramid)
    assume(fits)
    batch, dtype, grad = drawn["batch"], drawn["dtype"], drawn["requires_grad"]

    def tensor(*shape):
        return torch.zeros(shape, dtype=dtype, requires_grad=grad)

    q = tensor(batch, heads, count, 4)
    k, v = (tensor(batch, drawn["kv_heads"], length, 4) for _ in "kv")
    shape = {"keys": (1, 1, 1, length), "pairs": (1, heads, count, length)}.get(bias)
    given_bias = None if shape is None else tensor(*shape)
    if bias == "window":
        given_bias = WindowBias(*(tensor(*q.shape[:3], side) for side in pattern.window))
    if bias == "table":
        given_bias = PyramidBias(tensor(pattern.bias_size, 1))
    told = foveal.explain(
        pattern,
        length,
        dtype=dtype,
        requires_grad=grad,
        batch=batch,
        heads=heads,
        head_dim=4,
        kv_heads=drawn["kv_heads"],
        num_queries=count,
        bias=shape,
        window_bias=bias == "window",
        pyramid_bias=bias == "table",
        key_mask=drawn["key_mask"],
        dropout=drawn["dropout"],
        return_lse=drawn["return_lse"],
    )
    taken.clear()
    foveal.attend(
        q,
        k,
        v,
        pattern,
        bias=given_bias,
        key_mask=torch.ones(batch, length, dtype=torch.bool) if drawn["key_mask"] else None,
        dropout_p=0.5 if drawn["dropout"] else 0.0,
        return_lse=drawn["return_lse"],
    )
    return told


@pytest.mark.usefixtures("unforced")
def test_layouts_of_heads_count_as_their_mean():
    """A head that reads everything and one that reads nothing much: pairs are those of both."""
    layout = torch.stack([torch.ones(16, 16), torch.eye(16)]).bool()
    told = foveal.explain(P.BlockSparse(layout, 64), 1024, heads=2)
    assert told.pairs == (1024 * 1024 + 16 * 64 * 64) // 2
    assert told.visited >= told.pairs
    swapped = foveal.explain(P.BlockSparse(layout.flip(0), 64), 1024, heads=2)
    assert swapped.visited == told.visited


def test_scores_of_the_reference_are_counted(monkeypatch):
    """8,192 tokens and 8 heads hold 2 GiB of scores there, not 4 MiB."""
    monkeypatch.setenv("FOVEAL_IMPL", "reference")
    told = foveal.explain(P.Full(), 8192)
    assert told.impl == "reference"
    assert told.score_bytes == 8 * 8192 * 8192 * 4
    half = foveal.explain(P.Full(), 8192, dtype=torch.bfloat16)
    assert half.score_bytes == told.score_bytes  # which are kept in float32


def test_queries_that_are_fewer_are_counted():
    """Pairs are those of the queries there are, and the text says of how many."""
    told = foveal.explain(P.Full(), 1000, num_queries=10)
    assert told.pairs == told.visited == 10_000
    assert "10,000 allowed of 10,000 (100.00%)" in str(told)
    told = foveal.explain(P.Halo(16, 4, 1, 2), 256)
    assert told.num_queries == 64
    assert f"of {64 * 256:,}" in str(told)


@pytest.mark.usefixtures("unforced")
def test_gradients_count():
    """What a kernel refuses with gradients it may take without them."""
    assert "backward" in foveal.explain(P.SlidingWindow(8), 300).alternatives["flex"]
    free = foveal.explain(P.SlidingWindow(8), 300, requires_grad=False)
    assert "backward" not in free.alternatives["flex"]


@pytest.mark.parametrize(
    "change",
    [
        {"key_mask": True},
        {"bias": (1, 1, 1, 16384)},
        {"dropout": True},
        {"key_mask": True, "dtype": torch.float64},
    ],
)
@pytest.mark.parametrize("pattern", [P.Full(), P.Full(causal=True), P.SlidingWindow(64)], ids=str)
@pytest.mark.usefixtures("unforced")
def test_nothing_of_n_by_n_is_written_out(pattern, change):
    """Long calls with padding, biases or dropout hold a few MiB of scores."""
    told = foveal.explain(pattern, 16384, **change)
    assert told.score_bytes <= 1 << 26


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"key_mask": "no"}, "key_mask must be True or False"),
        ({"length": 2.5}, "length"),
        ({"num_queries": -1}, "num_queries"),
        ({"bias": (2, 3)}, "bias"),
        ({"kv_heads": 3}, "multiple"),
    ],
)
def test_nonsense_is_named(change, words):
    """What explain() cannot mean it refuses by name."""
    options = {"length": 64} | change
    with pytest.raises(ValueError, match=words):
        foveal.explain(P.SlidingWindow(4), options.pop("length"), **options)


@pytest.mark.parametrize("length", [4096, 65_536, 262_144, 1_048_576])
def test_no_speed_is_told_as_nothing(length):
    """However slow another implementation would be, it has some share of the speed."""
    told = foveal.explain(P.SlidingWindow(64), length).alternatives["dense"]
    assert "estimated 0.00 of" not in told
    assert re.search(r"estimated (0\.\d\d|less than 0\.01) of the speed$", told)
