"""What is known of the machine, and its allocator."""

import platform

import pytest

KEEPS = """
import resource, torch
from foveal.training.machine import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert keep_freed_memory()
found = []  # the heap grows to its size in the first ones
while len(found) < 40 and (not found or found[-1] >= 100):
    found.append(faults())
assert found[-1] < 100, found
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a feature of glibc")
def test_freed_memory_is_used_again(after_torch):
    """64 MB that were freed come back without the 16,000 page faults of new memory."""
    after_torch(KEEPS)


def test_other_c_libraries_are_left_alone(monkeypatch):
    """Without glibc nothing is set, and the answer says so."""
    from foveal.training.machine import keep_freed_memory

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
