"""Questions whose answers the compiler takes as constants, by either way of asking."""

import threading
from dataclasses import dataclass

import pytest
import torch

from foveal.common import constant


@dataclass(frozen=True)
class Thing:
    size: float


LOCK = threading.Lock()
ASKED = []


def doubled(thing):
    with LOCK:  # nothing that a compiler could follow into
        ASKED.append(thing)
        return f"{2 * thing.size}"


class Holder(torch.nn.Module):
    def __init__(self, thing):
        super().__init__()
        self.thing = thing


@pytest.mark.parametrize("by_address", [False, True])
def test_each_object_is_asked_once(monkeypatch, by_address):
    """As an argument, held by a module, or in a tuple; another object has its own answer."""
    if constant.BY_ADDRESS and not by_address:
        pytest.skip("this torch takes no objects")
    monkeypatch.setattr(constant, "BY_ADDRESS", by_address)
    question = constant.constant_of(lambda thing: doubled(thing))
    calls = {
        "argument": lambda x, thing: x * float(question(thing)),
        "held": lambda x, holder: x * float(question(holder.thing)),
        "in a tuple": lambda x, things: x * float(question(things[1])),
    }
    x = torch.ones(2)
    for name, call in calls.items():
        compiled = torch.compile(call, fullgraph=True, backend="eager")
        for thing in (Thing(1.5), Thing(2.5)):
            given = {"held": Holder(thing), "in a tuple": (None, thing)}.get(name, thing)
            ASKED.clear()
            for _ in range(2):
                assert compiled(x, given).tolist() == [2 * thing.size] * 2
            assert len(ASKED) == 1
            assert ASKED[0] is thing
    assert question(Thing(4.0)) == "8.0"
