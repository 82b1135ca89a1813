"""What torch has cut into shards is refused, with the way that serves it."""

SETUP = """
import sys
import torch
import torch.distributed as dist
import foveal
from foveal import parallel, patterns as P

q, k, v = (torch.randn(1, 2, 32, 8) for _ in range(3))
parts = [x.chunk(2, 2)[0].clone() for x in (q, k, v)]
pattern = P.SlidingWindow(9)
for _ in range(3):  # until the call is known
    foveal.attend(*parts, pattern)
assert "torch.distributed.tensor" not in sys.modules

from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.distributed.device_mesh import init_device_mesh
dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
mesh = init_device_mesh("cpu", (2,))

def calls(q, k, v):
    n = q.shape[2]
    blocks = torch.zeros(1, 2, max(1, n // 16), 1, dtype=torch.long)
    rows = [x[0].transpose(0, 1) for x in (q, k, v)]
    yield "known", lambda: foveal.attend(q, k, v, pattern)
    yield "named", lambda: foveal.attend(q, k, v, pattern, impl="tiled")
    yield "mask", lambda: foveal.attend(
        q, k, v, pattern, key_mask=torch.ones(1, n, dtype=torch.bool)
    )
    yield "offset", lambda: foveal.attend(q, k, v, pattern, q_offset=-1)
    yield "selected", lambda: foveal.attend_selected(q, k, v, blocks, 16)
    yield "flex", lambda: foveal.flex_attention(q, k, v)
    yield "varlen", lambda: foveal.attend_varlen(*rows, [0, n], [0, n], pattern)
    yield "parallel", lambda: parallel.attend(q, k, v, pattern, mesh)

def told(call):
    try:
        call()
    except ValueError as error:
        return "foveal.parallel.attend" in str(error)
    return False
"""

IN_CONTEXT = """
from torch.distributed.tensor.experimental import context_parallel

with context_parallel(mesh, buffers=[q, k, v], buffer_seq_dims=[2, 2, 2]):
    assert q.shape == parts[0].shape
    print([name for name, call in calls(*parts) if not told(call)])
    print([name for name, call in calls(q, k, v) if not told(call)])
with context_parallel(mesh, buffers=[q, k, v], buffer_seq_dims=[2, 2, 2]):
    compiled = torch.compile(lambda *x: foveal.attend(*x, pattern), backend="eager")
    print(told(lambda: compiled(*parts)))
served = [call() for name, call in calls(q, k, v) if name != "parallel"]
print(len(served), foveal.attend(*parts, pattern).shape[2])
torch.nn.functional.scaled_dot_product_attention = lambda *args, **kwargs: None  # a stranger's
print(foveal.attend(*parts, pattern).shape[2])
"""

OF_DTENSORS = """
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

for placement in (Shard(2), Shard(1), Replicate()):
    cut = [distribute_tensor(x, mesh, [placement]) for x in (q, k, v)]
    print([name for name, call in calls(*cut) if not told(call)])
bias = distribute_tensor(torch.zeros(2, 32, 32), mesh, [Replicate()])
sinks = torch.nn.Parameter(distribute_tensor(torch.zeros(2), mesh, [Replicate()]))
print(told(lambda: foveal.attend(q, k, v, pattern, bias=bias)))
print(told(lambda: foveal.attend(q, k, v, pattern, sinks=sinks)))
"""


def test_of_dtensors_and_in_context_parallel(after_torch):
    """However they are placed, and of whichever argument; in the context every call is refused,
    one that was known before too; nobody else is taken for it."""
    found = after_torch(SETUP + OF_DTENSORS + IN_CONTEXT).split("\n")
    assert found[:5] == ["[]"] * 3 + ["True"] * 2
    assert found[5:] == ["[]", "[]", "True", "7 16", "16", ""]
