"""What every test may ask for."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import peers
import pytest


@pytest.fixture
def peer() -> Callable[[str], ModuleType]:
    """``peer("vit_pytorch.sep_vit")``: that module of a public package, or the test is skipped."""

    def load(name: str) -> ModuleType:
        try:
            return peers.peer(name)
        except ModuleNotFoundError as error:
            pytest.skip(f"{error} (pip install --no-deps -r peers.txt)")

    return load
