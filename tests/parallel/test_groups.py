"""Processes of a group compute what threads of a simulation do: attention, and whole models."""

import os

import pytest

CODE = '''
import os, tempfile
import torch, torch.distributed as dist
import foveal
from foveal import parallel, patterns as P
from torch.distributed.device_mesh import init_device_mesh

torch.set_num_threads(1)
SIZES = {"num_tokens": 20, "dim": 16, "depth": 2, "heads": 2, "dim_head": 8, "max_seq_len": 64}
MODELS = {
    "windows": lambda: foveal.TransformerLM(
        **SIZES, pattern=P.SlidingWindow(9), tie_embeddings=True
    ),
    "reversible": lambda: foveal.HTransformer1D(
        **SIZES, block_size=4, causal=True, shift_tokens=True, reversible=True
    ),
    "hourglass": lambda: foveal.HourglassTransformerLM(
        **{**SIZES, "depth": (1, 1, 1)}, shorten_factor=3
    ),
    "dalle": lambda: foveal.DALLE(
        dim=24, depth=2, heads=2, dim_head=12, num_text_tokens=20, text_seq_len=5,
        num_image_tokens=20, image_grid=4, attn_types=("axial_row", "conv_like"), reversible=True,
    ),
}


def loss_of(model, rows, mesh=None):
    if isinstance(model, foveal.DALLE):
        return model(rows[:, :4], rows[:, 4:20], return_loss=True)
    if mesh is None:
        logits, targets = model(rows[:, :-1]), rows[:, 1:]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    own, targets = (parallel.take(x, mesh) for x in (rows[:, :-1], rows[:, 1:]))
    return parallel.cross_entropy(model(own), targets, mesh)


def one_process(name):
    """A model, its input, its loss, and the gradients of its weights."""
    torch.manual_seed(0)
    model = MODELS[name]().double().activation_checkpointing()
    rows = torch.randint(1, 20, (4, 34))
    loss = loss_of(model, rows)
    loss.backward()
    grads = [p.grad for p in model.parameters()]
    model.zero_grad()
    return model, rows, loss.detach(), grads


def far_in_models(known, mesh, every):
    """How far the ranks are from one process: losses (to 1e-12) and gradients (to 1e-10)."""
    model, rows, wanted, expected = known
    parallel.shard_sequence(model, mesh["cp"])
    if every is not None:
        from torch.distributed.fsdp import fully_shard

        for block in [one for one in model.modules() if isinstance(one, foveal.layers.Block)]:
            fully_shard(block, mesh=every)
        fully_shard(model, mesh=every)
    count, share = mesh.size(0), mesh.get_local_rank("dp")
    loss = loss_of(model, rows.chunk(count)[share], mesh["cp"]) / count
    loss.backward()
    total = loss.detach().clone()
    dist.all_reduce(total)
    far = [float((total - wanted).abs()) * 100]
    for parameter, whole in zip(model.parameters(), expected):
        grad = parameter.grad
        if every is None:
            dist.all_reduce(grad)
        else:
            grad = grad.full_tensor() * mesh.size()  # FSDP averages
        far.append(float((grad - whole).abs().max()))
    return max(far)


def far_in_pictures(mesh, every):
    """How far an image model is by rows of the image; batch norms learn where all share them."""
    torch.manual_seed(0)
    net = foveal.models.HaloNet(
        num_classes=5, depths=(1, 1), dims=(8, 8), heads=(2, 2), strides=(1, 2), block_size=4,
        halo_size=3, stem_dim=8, mixers=(("halo",), ("map",)), channel_attention="se",
    ).double().train(mesh.size(0) == 1)
    images = torch.randn(4, 3, 45, 22, dtype=torch.float64)
    wanted = net(images).square().mean()
    expected = torch.autograd.grad(wanted, list(net.parameters()))
    parallel.shard_rows(net, mesh["cp"])
    if every is not None:
        from torch.distributed.fsdp import fully_shard

        for stage in net.stages:
            fully_shard(stage, mesh=every)
        fully_shard(net, mesh=every)
    share = images.chunk(mesh.size(0))[mesh.get_local_rank("dp")]
    loss = net(parallel.take(share, mesh["cp"], dim=2)).square().mean() / mesh.size(0)
    loss.backward()
    total = loss.detach() / mesh.size(1)  # each has that of the whole images
    dist.all_reduce(total)
    far = [float((total - wanted.detach()).abs()) * 100]
    for parameter, whole in zip(net.parameters(), expected):
        grad = parameter.grad
        if every is None:
            grad = grad.contiguous()
            dist.all_reduce(grad)
        else:
            grad = grad.full_tensor() * mesh.size()
        far.append(float((grad - whole).abs().max()))
    return max(far)


def far_in_attention(pattern, mesh):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 48, 8, dtype=torch.float64) for _ in range(3))
    whole = [x.clone().requires_grad_() for x in (q, k, v)]
    wanted = foveal.attend(*whole, pattern)
    wanted.square().sum().backward()
    mine = [parallel.take(x, mesh, dim=2, align=16).clone().requires_grad_() for x in (q, k, v)]
    out = parallel.attend(*mine, pattern, mesh)
    out.square().sum().backward()
    cut = slice(0, 16) if mesh.get_local_rank() == 0 else slice(16, 48)
    found = [(out, wanted), *((a.grad, b.grad) for a, b in zip(mine, whole))]
    return max(float((a - b[:, :, cut]).abs().max()) for a, b in found)


def run(shape, patterns, shard_weights):
    """Fork into ranks; print whether each agrees, and its exit status."""
    size = shape[0] * shape[1]
    known = [one_process(name) for name in MODELS]  # before: once is enough
    store, children, rank = os.path.join(tempfile.mkdtemp(), "store"), [], 0
    for number in range(1, size):
        child = os.fork()
        if not child:
            rank, children = number, []
            break
        children.append(child)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("dp", "cp"))
    every = mesh["dp", "cp"]._flatten("dp_cp") if shard_weights else None
    far = [far_in_attention(one, mesh["cp"]) for one in patterns]
    far += [far_in_models(one, mesh, every) for one in known] + [far_in_pictures(mesh, every)]
    dist.barrier()
    dist.destroy_process_group()
    if rank:
        os._exit(int(max(far) > 1e-10))
    print(*(one < 1e-10 for one in far), *(os.waitpid(child, 0)[1] for child in children))

'''


def test_two_processes_compute_what_one_does(after_dynamo):
    """Under gloo, in float64: outputs and gradients of attention to 1e-10; the loss of a model of
    every family to 1e-12, and the gradients of its weights to 1e-10, recomputed or reversible;
    an image model by rows of the image."""
    kinds = (
        "P.SlidingWindow(9), P.Prefix(3) | P.SlidingWindow(5), P.Pyramid(4), P.Halo((6, 8), 3, 1)"
    )
    found = after_dynamo(CODE + f"run((1, 2), [{kinds}], False)").split()
    assert found == ["True"] * 9 + ["0"]


@pytest.mark.skipif("FOVEAL_LONG" not in os.environ, reason="20 s of processes; FOVEAL_LONG=1")
def test_weights_may_be_sharded_beside_the_sequence(after_dynamo):
    """FSDP2 on 2 x 2: rows by one dimension of the mesh, tokens by the other, weights by both."""
    found = after_dynamo(CODE + "run((2, 2), [], True)").split()
    assert found == ["True"] * 5 + ["0"] * 3
