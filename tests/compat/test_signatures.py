"""The import swap gives every public name of a package, with its signature."""

import importlib
import inspect

import pytest

SWAPS = {
    "halonet_pytorch.halonet_pytorch": "halonet_pytorch",
    "h_transformer_1d.h_transformer_1d": "h_transformer_1d",
    "h_transformer_1d.autoregressive_wrapper": "h_transformer_1d.autoregressive_wrapper",
    "h_transformer_1d.reversible": "h_transformer_1d.reversible",
    "hourglass_transformer_pytorch.hourglass_transformer_pytorch": "hourglass_transformer_pytorch",
    "hourglass_transformer_pytorch.autoregressive_wrapper": (
        "hourglass_transformer_pytorch.autoregressive_wrapper"
    ),
    "vit_pytorch.sep_vit": "vit_pytorch.sep_vit",
    "dalle_pytorch.attention": "dalle_pytorch.attention",
    "dalle_pytorch.transformer": "dalle_pytorch.transformer",
    "dalle_pytorch.reversible": "dalle_pytorch.reversible",
    "dalle_pytorch.dalle_pytorch": "dalle_pytorch.dalle_pytorch",
}
"""A module of a package -> where its names stand under foveal.compat, beside its own path."""


def public_names(module):
    """Functions and classes that a module defines itself."""
    return {
        name: value
        for name, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }


def callables(theirs):
    """What can be called of a function or a class: itself, and its own public methods."""
    if inspect.isfunction(theirs):
        return {"": theirs}
    own = {name: value for name, value in vars(theirs).items() if inspect.isfunction(value)}
    return {name: f for name, f in own.items() if name == "__init__" or not name.startswith("_")}


def described(function):
    """Names, kinds and defaults of the parameters, in order."""
    return [
        (p.name, p.kind, getattr(p.default, "__name__", p.default))
        for p in inspect.signature(function).parameters.values()
    ]


def check_signature(theirs, ours, where):
    """Ours takes every call of theirs; what it takes besides comes last, and is optional."""
    wanted, found = described(theirs), described(ours)
    if wanted == [("args", inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.empty)]:
        return
    more = [one for one in found if one not in wanted]
    assert [one for one in found if one in wanted] == wanted, where
    for one in more:
        last = one in found[len(wanted) :] or one[1] == inspect.Parameter.KEYWORD_ONLY
        assert last, (where, one)
        assert one[2] is not inspect.Parameter.empty, (where, one)


@pytest.mark.parametrize("module", SWAPS)
def test_every_public_name_has_the_packages_signature(module, peer):
    """Each class, method and function: the same parameters in the same order, same defaults."""
    names = public_names(peer(module))
    assert names
    for home in {SWAPS[module], module}:
        ours = importlib.import_module(f"foveal.compat.{home}")
        for name, theirs in names.items():
            assert name in ours.__all__, f"{home}.{name}"
            own = getattr(ours, name)
            for method, function in callables(theirs).items():
                mine = getattr(own, method) if method else own
                if getattr(function, "__name__", "") == "inner":
                    continue  # behind the package's own decorator its signature is lost
                check_signature(function, mine, f"{home}.{name}.{method}")


def test_what_decorators_hide(peer):
    """`generate` of both wrappers, which the packages hide behind (model, *args, **kwargs)."""
    for package, extra in (
        ("h_transformer_1d", ["filter_logits_fn"]),
        ("hourglass_transformer_pytorch", []),
    ):
        module = f"{package}.autoregressive_wrapper"
        theirs = peer(module).AutoregressiveWrapper.generate
        hidden = inspect.getclosurevars(inspect.unwrap(theirs)).nonlocals
        while "fn" in hidden or "func" in hidden:
            theirs = hidden.get("fn") or hidden["func"]
            hidden = inspect.getclosurevars(theirs).nonlocals
        ours = importlib.import_module(f"foveal.compat.{module}").AutoregressiveWrapper.generate
        assert described(ours) == described(theirs)
        assert all(name in inspect.signature(ours).parameters for name in extra)


def test_the_room_loads_when_it_is_named(after_torch):
    """`import foveal` loads nothing of it, and no package itself is ever imported."""
    code = """
import sys, foveal
print([m for m in sys.modules if m.startswith("foveal.compat")])
import foveal.compat
print([m for m in sys.modules if m.startswith("foveal.models")])
from foveal.compat.h_transformer_1d import HTransformer1D
from foveal.compat.hourglass_transformer_pytorch import HourglassTransformerLM
from foveal.compat.halonet_pytorch import HaloAttention
from foveal.compat.vit_pytorch.sep_vit import SepViT
from foveal.compat.dalle_pytorch import DALLE
theirs = ("h_transformer_1d", "hourglass_transformer_pytorch", "halonet_pytorch", "vit_pytorch",
          "dalle_pytorch", "einops", "rotary_embedding_torch")
print([m for m in sys.modules if m.split(".")[0] in theirs])
"""
    assert after_torch(code).split("\n")[:3] == ["[]", "[]", "[]"]


def test_packages_are_attributes_of_the_room(after_torch):
    """Without an import of its own, foveal.compat.<package> is there; another name is not."""
    code = """
import foveal
print(foveal.compat.hourglass_transformer_pytorch.Attention.__name__)
print(foveal.compat.vit_pytorch.sep_vit.SepViT.__name__)
print(set(foveal.compat._PACKAGES) <= set(dir(foveal.compat)))
print(hasattr(foveal.compat, "halonet"), hasattr(foveal.layers, "load_upstream"))
"""
    assert after_torch(code).split() == ["Attention", "SepViT", "True", "False", "False"]
