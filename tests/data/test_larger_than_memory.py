"""Data four times larger than all the address space that a process may have."""

import json

import pytest

resource = pytest.importorskip("resource", reason="no limits on this system")

CODE = """
import json, os, resource, sys, tempfile, threading
import torch
from foveal.data.file_reader import FileReader
from foveal.recipes.config import config_from_dict
from foveal.recipes.kind import KindTask
from foveal.training.layout import Layout

table = {
    "recipe": "big", "task": "bytes",
    "model": {"name": "TransformerLM", "dim": 8, "depth": 1, "heads": 1, "dim_head": 8,
              "pattern": "SlidingWindow(8)"},
    "data": {"path": "", "context": 32},
    "training": {"steps": 3, "batch_size": 8, "prefetch": 2},
}

def taken():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()

def made(prefetch, rank=0, world=1):
    config = config_from_dict(
        {**table, "training": {**table["training"], "prefetch": prefetch}}, "the test")
    return KindTask(config, Layout(rank, world))

def weights(task, steps, count=None):
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(task.model, task.stream.next()).backward()
        optimizer.step()
    task.close()
    return torch.cat([p.detach().flatten() for p in task.model.parameters()])

torch.set_num_threads(1)
limit = taken() + (1 << 30)
size = 4 * limit
folder = tempfile.mkdtemp()
table["data"]["path"] = path = os.path.join(folder, "big.bin")
with open(path, "wb") as file:  # sparse: it takes no room, but for what is told apart
    for place in range(0, size, size // 64):
        file.seek(place)
        file.write(bytes(range(256)) * 4)
    file.truncate(size)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    open(path, "rb").read()
    whole = "fits"
except MemoryError:
    whole = "no room"

read = []
plain_read = FileReader.read_into
def counted(self, out, start):
    read.append((threading.current_thread().name, start, len(out)))
    plain_read(self, out, start)
FileReader.read_into = counted

one, ahead = weights(made(0), 3), weights(made(2), 3)
read.clear()
shares = []
for rank in range(4):
    task = made(0, rank, 4)
    for _ in range(5):
        task.stream.next()
    shares.append([start for _, start, _ in read])
    lengths = {length for _, _, length in read}
    read.clear()
scored = made(0).evaluate(quick=True)["bits_per_byte"]
os.unlink(path)
print(json.dumps({
    "times": size / limit, "whole": whole, "same": bool(torch.equal(one, ahead)),
    "finite": bool(one.isfinite().all()), "shares": shares, "lengths": list(lengths),
    "scored": scored[1], "peak": taken() / limit,
}))
"""


def test_it_trains_and_each_rank_reads_its_share(after_dynamo):
    """A file that cannot be read whole trains and scores; prefetch changes no bit; 4 ranks read
    five batches of two windows each, and none twice."""
    found = json.loads(after_dynamo(CODE))
    assert found["times"] >= 4
    assert found["whole"] == "no room"
    assert found["same"]
    assert found["finite"]
    assert [len(share) for share in found["shares"]] == [10] * 4
    assert len({start for share in found["shares"] for start in share}) == 40
    assert found["lengths"] == [33]
    assert 95 * 32 < found["scored"] <= 96 * 32  # the last window is the rest
    assert found["peak"] <= 1
