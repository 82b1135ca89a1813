"""The state of optimizers by the names of parameters, whoever holds which part of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

Moments = dict[str, dict[str, Tensor]]
"""Name of a parameter -> name of a state -> its values."""
_OF_THE_DEVICE = ("foreach", "fused", "capturable", "differentiable")
"""Options that say how to compute, not what."""


def names_of(model: nn.Module) -> dict[int, str]:
    """The identity of a parameter -> its name."""
    return {id(p): name for name, p in model.named_parameters()}


def read_moments(model: nn.Module, optimizers: Iterable[Any]) -> Moments:
    """What optimizers keep of each parameter."""
    names = names_of(model)
    return {names[id(p)]: dict(kept) for one in optimizers for p, kept in one.state.items()}


def read_groups(model: nn.Module, optimizers: Iterable[Any]) -> list[dict[str, Any]]:
    """The settings of each group of parameters, and under "params" the names of these."""
    names = names_of(model)
    return [
        {**group, "params": [names[id(p)] for p in group["params"]]}
        for one in optimizers
        for group in one.param_groups
    ]


def states_from(
    model: nn.Module, optimizers: Iterable[Any], moments: Moments, groups: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """What optimizers load to go on with what others kept, however these grouped parameters.

    Raises:
        KeyError: there is a parameter that they did not have.
    """
    names = names_of(model)
    settings = {name: group for group in groups for name in group["params"]}
    states = []
    for optimizer in optimizers:
        state = optimizer.state_dict()
        numbers: dict[int, str] = {}
        for own, table in zip(optimizer.param_groups, state["param_groups"], strict=True):
            numbers |= {
                number: names[id(p)]
                for number, p in zip(table["params"], own["params"], strict=True)
            }
            table.update(_settings(table, settings[names[id(own["params"][0])]]))
        state["state"] = {i: moments[name] for i, name in numbers.items() if name in moments}
        states.append(state)
    return states


def _settings(own: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """What a group takes over; JSON knows no tuples."""
    taken = {k: v for k, v in saved.items() if k in own and k not in ("params", *_OF_THE_DEVICE)}
    return {k: tuple(v) if isinstance(own[k], tuple) else v for k, v in taken.items()}


def from_numbers(states: list[dict[str, Any]], named: list[list[str]]) -> tuple[Moments, Any]:
    """Moments and groups of `state_dict`s, in which parameters are numbered.

    Args:
        states: of each optimizer.
        named: the names of the parameters of each, in the order of its groups.
    """
    moments: Moments = {}
    groups: list[dict[str, Any]] = []
    for state, names in zip(states, named, strict=True):
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        name_of = dict(zip(numbers, names, strict=True))
        moments |= {name_of[number]: dict(kept) for number, kept in state["state"].items()}
        groups += [
            {**group, "params": [name_of[number] for number in group["params"]]}
            for group in state["param_groups"]
        ]
    return moments, groups
