"""Batch norms of processes under gloo train as those of one."""

CODE = """
import os, tempfile
import torch, torch.distributed as dist
from torch import nn
from foveal.training.batch_norms import share_over_processes
from foveal.training.layout import Layout, ParallelConfig

torch.set_num_threads(1)
torch.compiler.disable = lambda act: act  # it takes two seconds to import
store = os.path.join(tempfile.mkdtemp(), "store")
child = os.fork()
rank = 0 if child else 1
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(0)
x = torch.randn(6, 3, 4, 4, dtype=torch.float64)

def train(layer, x):
    for _ in range(3):
        layer(x).sin().sum().backward()
    return layer

alone = train(nn.BatchNorm2d(3).double(), x)
layer = nn.BatchNorm2d(3).double()
found = share_over_processes(layer, Layout(rank, 2))
train(layer, x.split([4, 2])[rank])
dist.all_reduce(layer.weight.grad)
same = found == 1
for a, b in zip(layer.state_dict().values(), alone.state_dict().values()):
    same = same and torch.allclose(a.double(), b.double(), rtol=1e-12, atol=1e-12)
same = same and torch.allclose(layer.weight.grad, alone.weight.grad, rtol=1e-11, atol=1e-11)
together = ParallelConfig(sequence=2)  # the two have the same examples
same = same and share_over_processes(nn.BatchNorm1d(2), Layout(rank, 2, together)) == 0
dist.barrier()
dist.destroy_process_group()
if not child:
    os._exit(int(not same))
print(same, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_two_processes_share_their_batch_norms(after_torch):
    """Statistics and gradients of 4 + 2 examples are those of 6, to 1e-12 in float64."""
    assert after_torch(CODE).split() == ["True", "0"]
