"""Processes of a group exchange what threads of a simulation do."""

CODE = """
import os, sys, tempfile
import torch, torch.distributed as dist
import foveal
from foveal import parallel, patterns as P
from torch.distributed.device_mesh import init_device_mesh

torch.set_num_threads(1)
store = os.path.join(tempfile.mkdtemp(), "store")
child = os.fork()
rank = 0 if child else 1
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("cp",))["cp"]
worst = 0.0
kinds = P.SlidingWindow(9), P.Prefix(3) | P.SlidingWindow(5), P.Pyramid(4), P.Halo((6, 8), 3, 1)
for pattern in kinds:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 48, 8, dtype=torch.float64) for _ in range(3))
    whole = [x.clone().requires_grad_() for x in (q, k, v)]
    wanted = foveal.attend(*whole, pattern)
    wanted.square().sum().backward()
    mine = [parallel.take(x, mesh, dim=2, align=16).clone().requires_grad_() for x in (q, k, v)]
    out = parallel.attend(*mine, pattern, mesh)
    out.square().sum().backward()
    cut = slice(0, 16) if rank == 0 else slice(16, 48)
    found = [(out, wanted), *((a.grad, b.grad) for a, b in zip(mine, whole))]
    worst = max([worst, *(float((a - b[:, :, cut]).abs().max()) for a, b in found)])
dist.barrier()
dist.destroy_process_group()
if not child:
    os._exit(int(worst > 1e-10))
print(worst < 1e-10, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_two_processes_compute_what_one_does(after_torch):
    """Outputs and gradients of two processes under gloo, to 1e-10 in float64."""
    assert after_torch(CODE).split() == ["True", "0"]
