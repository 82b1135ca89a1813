"""A text or a number never stands for another pattern: registry, caches, subclasses, checks."""

import copy
import enum
import gc
import pickle
import re
import threading
import weakref
from dataclasses import dataclass, field

import pytest
import torch

import foveal
from foveal import patterns as P
from foveal.common.memo import remember
from foveal.patterns.base import Pattern
from foveal.patterns.subclasses import is_a
from foveal.testing import assert_close, assert_pattern, dense_attention


def qkv(length, heads=1, dim=4):
    g = torch.Generator().manual_seed(length)
    return [torch.randn(1, heads, length, dim, generator=g) for _ in range(3)]


def assert_attends(pattern, length=130, heads=1):
    """tiled and the default give what the mask of the pattern says."""
    q, k, v = qkv(length, heads)
    want, _ = dense_attention(q, k, v, pattern.mask(length))
    for impl in ("tiled", None):
        assert_close(foveal.attend(q, k, v, pattern, impl=impl), want, rtol=1e-5)


class Side(enum.Enum):
    LEFT = 1
    RIGHT = 2


class Wrapped(enum.IntEnum):
    SHORT = 1
    LONG = 40


def make(step):
    @dataclass(frozen=True)
    class Local(Pattern):
        causal: bool = True

        def allows(self, q_idx, k_idx):
            return (k_idx <= q_idx) & ((q_idx - k_idx) % step == 0)

    return Local()


def test_two_classes_of_one_name():
    """A function that makes classes: each pattern is computed by its own, in turn and again."""
    patterns = [make(step) for step in (2, 3, 5)]
    for pattern in patterns + patterns[::-1]:
        assert_attends(pattern)
    assert len({hash(one) for one in patterns}) == 3
    assert patterns[0] != patterns[1]


def test_a_user_may_call_a_class_as_ours():
    """A user's SlidingWindow and Full live beside foveal's, and both are themselves."""
    source = (
        "@dataclass(frozen=True)\nclass {0}(Pattern):\n    def allows(self, q, k):\n        {1}"
    )
    for name, rule in (("Full", "return (q - k) % 3 == 0"), ("Blocks", "return q >= k")):
        space = {"dataclass": dataclass, "Pattern": Pattern, "__name__": "someone"}
        exec(source.format(name, rule), space)
        assert_attends(space[name]())
    assert_attends(P.Full())
    assert_attends(P.Blocks(7))


@dataclass(frozen=True)
class Ratio(Pattern):
    reach: object = 4

    def allows(self, q_idx, k_idx):
        odd = isinstance(self.reach, bool)
        return ((q_idx - k_idx).abs() < self.reach) if not odd else q_idx == k_idx


def test_true_one_and_one_point_zero_are_three():
    """Values that Python calls equal are different patterns with plans of their own."""
    assert len({Ratio(True), Ratio(1), Ratio(1.0), Ratio(1)}) == 3
    for first, second in ((3, 3.0), (1, True), (2.0, 2)):
        assert Ratio(first) != Ratio(second)
        for pattern in (Ratio(first), Ratio(second)):
            assert_attends(pattern)


@dataclass(frozen=True)
class Anything(Pattern):
    held: object

    def allows(self, q_idx, k_idx):
        held = self.held
        if isinstance(held, torch.Tensor):
            return held.to(q_idx.device)[q_idx] == held.to(q_idx.device)[k_idx]
        if isinstance(held, Side):
            return k_idx <= q_idx if held is Side.LEFT else k_idx >= q_idx
        if isinstance(held, dict):
            held = sum(held.values())
        if isinstance(held, list | tuple | set | frozenset):
            return sum(((q_idx - k_idx) == one) for one in held).bool()
        if callable(held):
            return held(q_idx, k_idx)
        return (q_idx - k_idx).abs() < float(held)


@dataclass(frozen=True, kw_only=True, slots=True)
class Slotted(Pattern):
    window: int
    half: int = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "half", self.window // 2)

    def allows(self, q_idx, k_idx):
        return (q_idx - k_idx).abs() <= self.half


class Plain(Pattern):
    def __init__(self, window):
        object.__setattr__(self, "window", window)

    def allows(self, q_idx, k_idx):
        return (q_idx - k_idx).abs() < self.window


@pytest.mark.parametrize("length", [20, 130])
@pytest.mark.parametrize(
    "pattern",
    [
        Anything(2.5),
        Anything(torch.arange(130) // 9),
        Anything(Side.RIGHT),
        Anything(Wrapped.LONG),
        Anything([0, 4, 7]),
        Anything({0, 2}),
        Anything({"left": 3, "right": 2}),
        Anything(lambda q, k: q // 5 == k // 5),
        Slotted(window=9),
        Plain(4),
        P.SlidingWindow(5) | Anything(1.5),
        P.Union(Plain(2), Plain(9)),
    ],
    ids=lambda one: re.sub(" at 0x[0-9a-f]+", "", repr(one)),  # alike in every process
)
def test_fields_of_any_kind(pattern, length):
    """What a pattern holds need not be ints: eager calls get the very object."""
    assert_attends(pattern, length)


def test_a_change_in_place_is_another_pattern():
    """Lists, dicts and tensors that are changed after a call do not get the old plan."""
    for held, change in (
        ([0, 1], lambda x: x.append(5)),
        ({"a": 2}, lambda x: x.update(a=9)),
        (torch.arange(130) // 9, lambda x: x.floor_divide_(3)),
    ):
        pattern = Anything(held)
        assert_attends(pattern)
        change(held)
        assert_attends(pattern)


def test_patterns_copy_and_pickle():
    """A copy is equal, with the same hash; what a cache notes about a pattern does not travel."""
    for pattern in (P.SlidingWindow(3), P.BlockSparse.bigbird(64, 8), P.Halo(8), Plain(3)):
        hash(pattern)
        assert "_key" not in pattern.__getstate__()
        for other in (copy.copy(pattern), copy.deepcopy(pattern)):
            assert other == pattern
            assert hash(other) == hash(pattern)
    assert pickle.loads(pickle.dumps(Slotted(window=4))) == Slotted(window=4)


# -- subclasses ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class EverySecond(P.SlidingWindow):
    def allows(self, q_idx, k_idx):
        return super().allows(q_idx, k_idx) & ((q_idx - k_idx) % 2 == 0)


@dataclass(frozen=True)
class Ahead(P.SlidingWindow):
    """Says that it is causal, and is not."""

    def allows(self, q_idx, k_idx):
        return (k_idx - q_idx).abs() < self.window


@dataclass(frozen=True)
class Diagonal(P.Full):
    def allows(self, q_idx, k_idx):
        return (q_idx - k_idx).abs() % 5 == 0


@dataclass(frozen=True)
class Cross(P.Neighborhood):
    def allows(self, q_idx, k_idx):
        (qy, qx), (ky, kx) = self.coordinates(q_idx), self.coordinates(k_idx)
        return super().allows(q_idx, k_idx) & ((qy == ky) | (qx == kx))


@dataclass(frozen=True)
class Torus(P.Axial):
    def coordinates(self, idx):
        return idx // self.width, (idx + idx // self.width) % self.width


@dataclass(frozen=True)
class Holes(P.BlockSparse):
    step: int = 3

    def allows(self, q_idx, k_idx):
        return super().allows(q_idx, k_idx) & ((q_idx + k_idx) % self.step != 0)


@dataclass(frozen=True, init=False)
class Differ(P.Union):
    def fold(self, found):
        first, second = found
        return first ^ second


class Sparser:
    def allows(self, q_idx, k_idx):
        return super().allows(q_idx, k_idx) & (k_idx % 3 != 1)


@dataclass(frozen=True)
class Mixed(Sparser, P.Strided):
    pass


@dataclass(frozen=True)
class Fewer(P.Shorten):
    def allows(self, q_idx, k_idx):
        return super().allows(q_idx, k_idx) & (k_idx % 2 == 0)


LAYOUT = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]])


@pytest.mark.parametrize(
    ("pattern", "length"),
    [
        (EverySecond(9), 90),
        (EverySecond(9, causal=False), 65),
        (Diagonal(), 70),
        (Cross((9, 11), 5), 99),
        (Cross((9, 11), 3, causal="raster"), 80),
        (Torus((6, 7)), 42),
        (Holes(LAYOUT, 25), 70),
        (Holes(torch.stack([LAYOUT, LAYOUT.T]), 25), 70),
        (Differ(P.SlidingWindow(9), P.SlidingWindow(4)), 80),
        (Mixed(8), 90),
        (Fewer(3), 50),
        (P.TextImage(5, Cross((5, 5), 3, causal="corner")), 30),
        (EverySecond(7) & P.Blocks(20), 70),
    ],
    ids=repr,
)
def test_a_subclass_with_another_rule_keeps_no_closed_form(pattern, length):
    """Plans, counts, intervals and decoding follow the rule of the subclass, not of its base."""
    assert_pattern(pattern, length)
    queries = pattern.num_queries(length)
    q, k, v = qkv(length, pattern.heads or 2)
    want, _ = dense_attention(q[:, :, :queries], k, v, pattern.mask(queries, length))
    for impl in ("tiled", None):
        assert_close(foveal.attend(q[:, :, :queries], k, v, pattern, impl=impl), want, rtol=1e-5)


def test_allows_has_the_last_word():
    """A subclass that sees the future although its base was causal loses no pair."""
    assert_attends(Ahead(9))
    with pytest.raises(AssertionError, match="causal"):
        assert_pattern(Ahead(9), 40)


def test_a_subclass_that_changes_nothing_stays_fast():
    """New names, defaults, checks and closed forms of its own cost a subclass nothing."""

    @dataclass(frozen=True)
    class Wide(P.SlidingWindow):
        window: int = 64
        name: str = "wide"

        def num_pairs(self, length):
            return super().num_pairs(length)

    assert Wide.horizon is P.SlidingWindow.horizon
    assert is_a(Wide(), P.SlidingWindow)
    assert not is_a(EverySecond(3), P.SlidingWindow)
    assert is_a(EverySecond(3), EverySecond)
    assert is_a(P.Full(), P.Full)


# -- checks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "name"),
    [
        (lambda: P.SlidingWindow(4, causal="false"), "causal"),
        (lambda: P.Full("true"), "causal"),
        (lambda: P.Full(1), "causal"),
        (lambda: P.Blocks(4, causal=0), "causal"),
        (lambda: P.Blocks(4.0), "block_size"),
        (lambda: P.Blocks(4, lookback=1.5), "lookback"),
        (lambda: P.Blocks(4, lookback=True), "lookback"),
        (lambda: P.SlidingWindow("8"), "window"),
        (lambda: P.SlidingWindow(2**70), "window"),
        (lambda: P.Axial(4, causal="no"), "causal"),
        (lambda: P.Axial(4, causal=True, wrap=1), "wrap"),
        (lambda: P.Strided(2.0), "stride"),
        (lambda: P.Fixed(4, 2, "causal"), "causal"),
        (lambda: P.Pyramid(8, causal="True"), "causal"),
        (lambda: P.Pyramid(8.0), "block_size"),
        (lambda: P.Shorten(2.5), "factor"),
        (lambda: P.Halo(8, 4.0), "block_size"),
        (lambda: P.Halo("8"), "size"),
        (lambda: P.Neighborhood((4, 4.5)), "size"),
        (lambda: P.Neighborhood(4, 3, dilation=True), "dilation"),
        (lambda: P.TextImage(2.0, P.Full()), "text_length"),
        (lambda: P.TextImage(2, P.Full(), causal_text="no"), "causal_text"),
        (lambda: P.TextImage(2, P.Halo((4, 8), 4, 1, 2)), "image_pattern"),
        (lambda: P.TextImage(2, P.Shorten(3)), "image_pattern"),
        (lambda: P.TextImage(2, P.Shorten(3) | P.Shorten(3)), "image_pattern"),
        (lambda: P.BlockSparse(torch.ones(2, 2), 8.0), "block_size"),
        (lambda: P.BlockSparse(torch.ones(2, 2), 8, causal="yes"), "causal"),
        (lambda: P.BlockSparse("ones", 8), "layout"),
        (lambda: P.BlockSparse.fixed(10**9, 1), "block"),
        (lambda: P.BlockSparse.fixed(64, 8, horizontal_global_attention="no"), "horizontal"),
        (lambda: P.BlockSparse.fixed(64, 8, different_layout_per_head="no"), "different"),
        (lambda: P.BlockSparse.fixed(64, 8, causal="no"), "causal"),
        (lambda: P.BlockSparse.bigbird(64, 8, num_random_blocks=1.0), "num_random_blocks"),
    ],
)
def test_what_cannot_work_is_refused_when_built(build, name):
    """Text for a bool, floats for counts, absurd sizes: one error that names the field."""
    with pytest.raises(ValueError, match=name):
        build()


def test_numbers_of_numpy_are_welcome():
    """NumPy's ints and bools become Python's."""
    np = pytest.importorskip("numpy")
    assert P.SlidingWindow(np.int64(4), causal=np.bool_(True)) == P.SlidingWindow(4)
    assert P.Halo((np.int32(8), 8), np.int8(4)) == P.Halo(8, 4)
    assert type(P.Blocks(np.int16(3)).block_size) is int


# -- memory and threads -------------------------------------------------------------------------


def test_nothing_is_kept_for_ever():
    """A layout that nobody uses any more is freed once later ones have come."""
    q, k, v = qkv(64)
    seen = []
    for step in range(6):
        layout = torch.rand(8, 8, generator=torch.Generator().manual_seed(step)) < 0.5
        pattern = P.BlockSparse(layout | torch.eye(8, dtype=torch.bool), 8)
        foveal.attend(q, k, v, pattern, impl="tiled")
        seen.append(weakref.ref(pattern))
        del pattern
    from foveal.ops import spec, tiled
    from foveal.patterns import base

    assert not spec._KEPT
    base._cached_tiles.cache_clear()
    tiled._plan.cache_clear()
    gc.collect()
    assert not any(one() for one in seen)


def test_results_are_bounded_in_bytes_and_entries():
    """The latest results stay while they fit; one that is too large alone is kept alone."""

    @remember(entries=3, mebibytes=1)
    def zeros(size):
        return torch.zeros(size, dtype=torch.uint8)

    for size in (1, 2, 3, 4):
        zeros(size)
    assert zeros.cache_info() == (3, 9)
    large = zeros(2 << 20)
    assert zeros(2 << 20) is large
    assert zeros.cache_info() == (1, 2 << 20)
    zeros(5)
    assert zeros.cache_info() == (1, 5)


def test_results_serve_every_caller():
    """What is computed in inference mode, or under another default device, serves training."""

    @remember(entries=3)
    def places(count):
        return torch.arange(count)

    with torch.inference_mode():
        assert not places(3).is_inference()
    with torch.device("meta"):
        assert places(4).tolist() == [0, 1, 2, 3]
    torch.func.vmap(lambda x: x + places(5).sum())(torch.zeros(2))
    assert places(5).tolist() == [0, 1, 2, 3, 4]


def test_threads_get_their_own_patterns():
    """Sixteen threads with patterns of their own, equal in name and size, never mix them up."""
    q, k, v = qkv(100)
    layouts = torch.rand(16, 10, 10, generator=torch.Generator().manual_seed(0)) < 0.4
    layouts |= torch.eye(10, dtype=torch.bool)
    want = [dense_attention(q, k, v, P.BlockSparse(one, 10).mask(100))[0] for one in layouts]
    wrong = []

    def work(number):
        for turn in range(4):
            pattern = P.BlockSparse(layouts[number], 10) if turn % 2 else make(number + 2)
            got = foveal.attend(q, k, v, pattern, impl="tiled")
            right = want[number]
            if not turn % 2:
                right, _ = dense_attention(q, k, v, pattern.mask(100))
            if (got - right).abs().max() > 1e-5:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not wrong
