"""The packages' small functions, value by value."""

import importlib

import pytest
import torch


def both(peer, module, name):
    ours = importlib.import_module(f"foveal.compat.{module}")
    return getattr(peer(module), name), getattr(ours, name)


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def check(peer, module, name, *calls):
    theirs, ours = both(peer, module, name)
    for args, kwargs in calls:
        torch.testing.assert_close(ours(*args, **kwargs), theirs(*args, **kwargs))


def test_of_halonet(peer):
    """Offsets to keys, expanded dimensions, pairs."""
    module = "halonet_pytorch.halonet_pytorch"
    check(peer, module, "rel_to_abs", ((noise(2, 3, 9),), {}), ((noise(1, 5, 9),), {}))
    check(peer, module, "relative_logits_1d", ((noise(2, 3, 4, 8), noise(11, 8)), {}))
    check(peer, module, "expand_dim", ((noise(2, 3),), {"dim": 1, "k": 4}))
    for value in (3, (1, 2), [1, 2]):
        theirs, ours = both(peer, module, "pair")
        assert ours(value) == theirs(value)
    theirs, ours = both(peer, module, "to")
    assert ours(noise(1)) == theirs(noise(1))


def test_of_h_transformer(peer):
    """Masked means and sums, shifts both ways, casts, flipped pairs, routes."""
    module = "h_transformer_1d.h_transformer_1d"
    x, mask = noise(2, 6, 4), torch.tensor([[True] * 4 + [False] * 2, [False] * 6])
    check(
        peer,
        module,
        "masked_aggregate",
        ((x,), {"dim": 1}),
        ((x, mask), {"dim": 1}),
        ((x, mask), {"dim": 1, "average": False}),
        ((x,), {"average": False}),
    )
    check(peer, module, "shift", *(((x, n, m), {}) for n in (0, 1, -2) for m in (None, mask)))
    check(peer, module, "flip_every_two", ((x,), {}))
    for module_ in both(peer, module, "cast_for_op"):
        assert module_(torch.float64, lambda t: t.new_tensor(t.dtype.itemsize))(x) == 8
    theirs, ours = both(peer, "h_transformer_1d.reversible", "route_args")
    router = {"mask": ((True, False), (True, True)), "other": ((False, False),) * 2}
    assert ours(router, {"mask": 1, "none": 2}, 2) == theirs(router, {"mask": 1, "none": 2}, 2)
    theirs, ours = both(peer, "h_transformer_1d.reversible", "layer_drop")
    for prob in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        wanted = theirs(list(range(9)), prob)
        torch.manual_seed(0)
        assert list(ours(list(range(9)), prob)) == wanted


def test_of_hourglass(peer):
    """Tuples, defaults, padding where the package can pad."""
    module = "hourglass_transformer_pytorch.hourglass_transformer_pytorch"
    for name, calls in (
        ("exists", [(None,), (0,)]),
        ("default", [(None, 3), (0, 3)]),
        ("cast_tuple", [(1, 3), ((1, 2), 3), ([1], 2)]),
    ):
        theirs, ours = both(peer, module, name)
        assert [ours(*args) for args in calls] == [theirs(*args) for args in calls]
    check(peer, module, "pad_to_multiple", ((noise(2, 6, 4), 3), {"dim": -2}))
    ours = both(peer, module, "pad_to_multiple")[1]
    assert ours(noise(2, 7, 4), 3, dim=-2, value=1.0)[:, 7:].eq(1.0).all()
    assert ours(noise(2, 7), 4).shape == (2, 8)


@pytest.mark.parametrize("package", ["h_transformer_1d", "hourglass_transformer_pytorch"])
def test_top_k(peer, package):
    """The default keeps 10 % of the vocabulary; a small one keeps a token, where theirs fails."""
    check(
        peer,
        f"{package}.autoregressive_wrapper",
        "top_k",
        ((noise(3, 40),), {}),
        ((noise(3, 40),), {"thres": 0.5}),
    )
    ours = both(peer, f"{package}.autoregressive_wrapper", "top_k")[1]
    assert ours(noise(3, 4)).isfinite().sum(-1).eq(1).all()
