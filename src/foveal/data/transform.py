"""A function of one's own on the pictures that are trained on, which a recipe names."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foveal.common.words import shorten, suggest
from foveal.data.stream import Draw

SETTING = "data.transform"


class Transform:
    """`data.transform`: a function that gets one picture, and gives one back.

    It is called as function(picture): uint8 (3, size, size), red, green, blue, scaled and cropped
    already, and its own to change. What it gives back has that shape, and is uint8, or floats from
    0 to 1. Before each call the generators of Python, NumPy (np.random) and torch are seeded by
    the seed of the run and the place of the picture in the order, so that a resumed run and one
    of several processes see what one would; afterwards they are as before. `torch.initial_seed()`
    is that seed, for whoever has another generator.

    Args:
        name: "package.module:function"; or of any object there that can be called, also as
            "package.module:object.attribute".

    Raises:
        ValueError: there is none of that name.
    """

    def __init__(self, name: str) -> None:
        self.name, self._function = name, find_function(name)

    @torch.no_grad()
    def __call__(self, pictures: Tensor, draw: Draw) -> Tensor:
        """Pictures uint8 (batch, 3, size, size) of a draw -> float (same shape), from 0 to 1.

        Raises:
            ValueError: the function fails, or gives what is no such picture.
        """
        changed = []
        with _kept_generators():
            for picture, seed in zip(pictures, draw.seeds, strict=True):
                _seed_all(seed)
                changed.append(self._change(picture.clone()))
        return torch.stack(changed) if changed else pictures.float()

    def _change(self, picture: Tensor) -> Tensor:
        shape = tuple(picture.shape)
        try:
            found = self._function(picture)
        except Exception as error:  # whatever somebody else's code raises
            raise ValueError(
                f"{SETTING}={self.name!r} failed on a picture, uint8 {shape}: "
                f"{shorten(f'{type(error).__name__}: {error}', 200)}"
            ) from error
        problem = _problem(found, shape)
        if problem:
            raise ValueError(
                f"{SETTING}={self.name!r} must give back a picture of the shape {shape}, uint8 or "
                f"floats from 0 to 1, got {problem}."
            )
        plain: Tensor = found.detach().cpu().as_subclass(Tensor)
        return plain.float() / 255 if plain.dtype == torch.uint8 else plain.float()


def find_function(name: str) -> Callable[[Any], Any]:
    """What 'package.module:function' names, imported.

    Raises:
        ValueError: not written so, no such module or function, or a module that fails.
    """
    home, colon, own = name.partition(":")
    if not (home and colon and own):
        raise ValueError(f"{SETTING} must be 'package.module:function', got {name!r}.")
    found: Any = _module(home, name)
    where = home
    for part in own.split("."):
        try:
            found = getattr(found, part)
        except Exception:  # somebody else's code may load what is asked for, and fail
            known = [one for one in dir(found) if not one.startswith("_")]
            hint = suggest(part, known, "look at its spelling.")
            raise ValueError(f"{SETTING}={name!r}: {where} has no {part!r}; {hint}") from None
        where += f".{part}"
    if isinstance(found, type):
        raise ValueError(
            f"{SETTING}={name!r} names a class; name a function, or an object that is made of it."
        )
    if not callable(found):
        raise ValueError(f"{SETTING}={name!r} must be a function, got {type(found).__name__}.")
    function: Callable[[Any], Any] = found
    return function


def _module(home: str, name: str) -> Any:
    try:
        return importlib.import_module(home)
    except ModuleNotFoundError as error:
        if error.name and (home == error.name or home.startswith(error.name + ".")):
            raise ValueError(
                f"{SETTING}={name!r}: there is no module {error.name!r}; look at its spelling, or "
                "add its folder to PYTHONPATH."
            ) from None
        reason: BaseException = error
    except (Exception, SystemExit) as error:  # whatever somebody else's code raises
        reason = error
    raise ValueError(
        f"{SETTING}={name!r}: the module {home!r} fails when it is imported: "
        f"{shorten(f'{type(reason).__name__}: {reason}', 200)}"
    ) from reason


def _problem(found: Any, shape: tuple[int, ...]) -> str:
    """Why something is no picture, or nothing."""
    if not isinstance(found, Tensor):
        return f"{type(found).__module__}.{type(found).__name__}"
    if tuple(found.shape) != shape:
        return f"the shape {tuple(found.shape)}"
    if found.dtype == torch.uint8:
        return ""
    if not found.is_floating_point():
        return f"{found.dtype}"
    low, high = (float(one) for one in found.detach().aminmax())
    if not (low >= 0 and high <= 1):  # NaN is in neither
        return f"floats from {low:g} to {high:g}"
    return ""


# -- what is random about it ----------------------------------------------------------------------


def _seed_all(seed: int) -> None:
    """Seed all that the functions of others draw from, those of accelerators excepted."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)


@contextmanager
def _kept_generators() -> Iterator[None]:
    """Afterwards the generators are as they were: dropout draws what it would have drawn."""
    state, numbers, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(state)
        np.random.set_state(numbers)  # noqa: NPY002
        torch.set_rng_state(tensors)
