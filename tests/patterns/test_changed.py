"""A pattern that is not frozen and changes is another one, for every cache."""

from __future__ import annotations

import pytest
import torch

import foveal
from foveal import patterns as P


class Window(P.Pattern):
    """No dataclass: its width is an attribute like any other."""

    causal = True

    def __init__(self, width):
        vars(self)["width"] = width

    def allows(self, q_idx, k_idx):
        return (q_idx >= k_idx) & (q_idx - k_idx < self.width)


class Settable(Window):
    __setattr__ = object.__setattr__


class Nested(Settable):
    """What it goes by lies deeper."""

    def __init__(self, width):
        self.sizes = {"width": width}

    def allows(self, q_idx, k_idx):
        return (q_idx >= k_idx) & (q_idx - k_idx < self.sizes["width"])


class Narrower(P.SlidingWindow):
    """A subclass of a dataclass that is none itself: it may be given attributes."""

    def allows(self, q_idx, k_idx):
        inside = super().allows(q_idx, k_idx)
        return inside & (q_idx - k_idx < getattr(self, "width", 8))


CHANGES = {
    Window: lambda pattern: vars(pattern).update(width=3),
    Settable: lambda pattern: setattr(pattern, "width", 3),
    Nested: lambda pattern: pattern.sizes.update(width=3),
    Narrower: lambda pattern: setattr(pattern, "width", 3),
}


@pytest.mark.parametrize("around", [lambda one: one, lambda one: one | P.SlidingWindow(1)])
@pytest.mark.parametrize("impl", [None, "reference", "dense", "tiled", "native"])
@pytest.mark.parametrize("kind", CHANGES, ids=lambda kind: kind.__name__)
def test_a_change_is_seen(kind, impl, around):
    """The next call computes what the pattern says by then; alone and within another."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 50, 8).unbind()
    inner = kind(8)
    pattern = around(inner)
    wide = foveal.attend(q, k, v, pattern, impl=impl)
    torch.testing.assert_close(wide, foveal.attend(q, k, v, P.SlidingWindow(8), impl="reference"))
    before = pattern.cache_key()
    CHANGES[kind](inner)
    narrow = foveal.attend(q, k, v, pattern, impl=impl)
    want = foveal.attend(q, k, v, P.SlidingWindow(3), impl="reference")
    torch.testing.assert_close(narrow, want)
    assert pattern.cache_key() != before
    assert pattern != around(kind(8))
