"""What every test may ask for."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from types import ModuleType

import peers
import pytest
import torch


@pytest.fixture
def peer() -> Callable[[str], ModuleType]:
    """``peer("vit_pytorch.sep_vit")``: that module of a public package, or the test is skipped."""

    def load(name: str) -> ModuleType:
        try:
            return peers.peer(name)
        except ModuleNotFoundError as error:
            pytest.skip(f"{error} (pip install --no-deps -r peers.txt)")

    return load


@pytest.fixture(autouse=bool(os.environ.get("FOVEAL_DETERMINISTIC")))
def deterministic() -> Iterator[None]:
    """With FOVEAL_DETERMINISTIC=1 the whole suite runs under torch's deterministic algorithms."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
