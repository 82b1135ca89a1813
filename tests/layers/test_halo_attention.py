"""HaloAttention: halonet-pytorch, dense and loop oracles, strides, padding, reach."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from foveal.layers import HaloAttention, RelPosEmb
from foveal.testing import assert_close, dense_attention

SIZES = [(8, 8), (19, 29), (1, 200)]  # a block; a whole block amid cut ones; a flat map


def make(**options: Any) -> HaloAttention:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"dim": 12, "block_size": 8, "halo_size": 3, "heads": 2}
    return HaloAttention(**{**defaults, "dim_head": 6, **options}).double()


def dense_bias(layer: HaloAttention, q: Tensor, height: int, width: int) -> Tensor:
    """Position logits of all pairs, gathered entry by entry: (batch, heads, n, m)."""
    emb = layer.rel_pos_emb
    assert emb is not None
    q_at = torch.cartesian_prod(
        torch.arange(0, height, layer.stride), torch.arange(0, width, layer.stride)
    )
    k_at = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    halves = q.chunk(2, -1) if emb.mode == "split" else (q, q)
    total = torch.zeros((), dtype=q.dtype)
    for axis, table in enumerate((emb.rel_height, emb.rel_width)):
        window, halo = emb.rel_size[axis], layer.halo_size[axis]
        # the window starts `halo` pixels before the block: halonet-pytorch counts from there
        index = k_at[None, :, axis] - q_at[:, None, axis] + halo + window - 1
        index = index.clamp(0, 2 * window - 2).expand(*q.shape[:2], -1, -1)
        total = total + (halves[axis] @ table.T).gather(-1, index)
    return total * (layer.scale if layer.scale_rel_pos else 1.0)


def oracle(layer: HaloAttention, x: Tensor) -> Tensor:
    """The layer by dense attention in float64."""
    height, width = x.shape[2:]
    q, k, v = (t.flatten(1, 2).transpose(1, 2) for t in layer._project(x))
    mask = layer.pattern_of(height, width).mask(q.shape[2], k.shape[2])
    bias = None if layer.rel_pos_emb is None else dense_bias(layer, q, height, width)
    out, _ = dense_attention(q, k, v, mask, bias=bias, scale=layer.scale)
    out = layer.to_out(out.transpose(1, 2).flatten(2))
    size = (-(-height // layer.stride), -(-width // layer.stride))
    return out.transpose(1, 2).unflatten(2, size)


def gradients(layer: nn.Module, x: Tensor, out: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    probe = torch.randn(out.shape, dtype=out.dtype)
    return list(torch.autograd.grad((out * probe).sum(), [x, *layer.parameters()]))


def assert_same_gradients(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    """Relative to the largest of all: some are zero, such as rows' positions in a flat map."""
    largest = max(float(value.abs().max()) for value in theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert float((mine - other).abs().max()) < tolerance * largest


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rel_pos": "split", "value_ratio": 1.5, "out_proj": False},
        {"stride": 2, "scale_rel_pos": False, "qkv_bias": True, "dim_out": 7},
        {"block_size": (4, 6), "halo_size": (0, 2), "rel_pos": None, "qk_ratio": 0.5},
    ],
    ids=["plain", "split", "strided", "rectangular"],
)
def test_equals_the_dense_oracle(size: tuple[int, int], options: dict[str, Any]) -> None:
    """Outputs and gradients are those of dense attention, whatever the size of the map."""
    layer = make(**options)
    x = torch.randn(2, 12, *size, dtype=torch.double, requires_grad=True)
    out, expected = layer(x), oracle(layer, x)
    assert_close(out, expected, 1e-12, "out")
    assert_same_gradients(gradients(layer, x, out), gradients(layer, x, expected), 1e-12)


def test_equals_halonet_pytorch(peer: Callable[[str], ModuleType]) -> None:
    """Same weights, same outputs and gradients as halonet-pytorch 0.0.5, in float32."""
    torch.manual_seed(0)
    options = {"dim": 32, "block_size": 8, "halo_size": 3, "dim_head": 16, "heads": 2}
    theirs, ours = peer("halonet_pytorch").HaloAttention(**options), HaloAttention(**options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 32, 24, 40, requires_grad=True)
    assert (ours(x) - theirs(x)).abs().max() < 1e-5
    assert_same_gradients(gradients(ours, x, ours(x)), gradients(theirs, x, theirs(x)), 1e-5)


def test_position_logits_of_whole_blocks_equal_halonet_pytorch(
    peer: Callable[[str], ModuleType],
) -> None:
    """RelPosEmb is a drop-in by itself, too."""
    theirs = peer("halonet_pytorch.halonet_pytorch").RelPosEmb(4, 10, 8)
    ours = RelPosEmb(4, 10, 8)
    ours.load_state_dict(theirs.state_dict())
    q = torch.randn(3, 16, 8)
    torch.testing.assert_close(ours(q), theirs(q))


def timm_by_loops(layer: HaloAttention, x: Tensor) -> Tensor:
    """timm's attention, key by key: what lies beyond the map is a key of zero with a position."""
    emb = layer.rel_pos_emb
    assert emb is not None
    q, k, v = (t[0] for t in layer._project(x))
    (block, _), (halo, _) = layer.block_size, layer.halo_size
    window = block + 2 * halo
    out = torch.zeros(*q.shape[:3], layer.dim_v, dtype=q.dtype)
    for i, j, head in itertools.product(*(range(n) for n in q.shape[:3])):
        query = q[i, j, head]
        row, column = (i * layer.stride, j * layer.stride)
        in_block = (row % block, column % block)
        if not layer.true_offsets:
            in_block = (in_block[0] // layer.stride, in_block[1] // layer.stride)
        logits, values = [], []
        for a, c in itertools.product(range(window), range(window)):
            y, z = row - row % block - halo + a, column - column % block - halo + c
            inside = 0 <= y < k.shape[0] and 0 <= z < k.shape[1]
            rel = emb.rel_height[a - in_block[0] + window - 1]
            rel = rel + emb.rel_width[c - in_block[1] + window - 1]
            content = query @ k[y, z, head] * layer.scale if inside else torch.zeros(())
            logits.append(content + query @ rel)
            values.append(v[y, z, head] if inside else torch.zeros_like(v[0, 0, 0]))
        weights = torch.stack(logits).softmax(0)
        out[i, j, head] = (weights[:, None] * torch.stack(values)).sum(0)
    return out.flatten(2).permute(2, 0, 1)[None]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("true_offsets", [True, False])
@pytest.mark.parametrize("size", [(4, 8), (5, 7)])
def test_padding_that_attends_equals_a_loop(
    stride: int, true_offsets: bool, size: tuple[int, int]
) -> None:
    """padding="attend" is timm's softmax over the whole window, zeros included."""
    layer = make(
        block_size=4,
        halo_size=1,
        stride=stride,
        padding="attend",
        scale_rel_pos=False,
        true_offsets=true_offsets,
        out_proj=False,
    )
    x = torch.randn(1, 12, *size, dtype=torch.double)
    assert_close(layer(x), timm_by_loops(layer, x), 1e-12)


def test_padding_that_attends_equals_explicit_zeros() -> None:
    """The closed form for absent keys has the gradients of keys that are really there."""
    layer = make(padding="attend", dropout=0.0, stride=2)
    x = torch.randn(2, 12, 13, 21, dtype=torch.double, requires_grad=True)
    copied = layer._windowed(*layer._project(x)).flatten(3)
    expected = layer.to_out(copied).permute(0, 3, 1, 2)
    out = layer(x)
    assert_close(out, expected, 1e-12)
    assert_same_gradients(gradients(layer, x, out), gradients(layer, x, expected), 1e-12)


def test_stride_subsamples_the_queries() -> None:
    """stride=2 gives every second row and column of stride 1: offsets count pixels."""
    whole, strided = make(), make(stride=2)
    strided.load_state_dict(whole.state_dict())
    x = torch.randn(1, 12, 19, 26, dtype=torch.double)
    assert_close(strided(x), whole(x)[:, :, ::2, ::2], 1e-12)


def test_inverted_padding_is_the_old_fault() -> None:
    """halonet-pytorch 0.0.4: an inner window gives its mean, any other window nothing."""
    layer = make(block_size=4, halo_size=2, padding="inverted")
    x = torch.randn(1, 12, 12, 12, dtype=torch.double)
    out = layer(x)
    v = layer._project(x)[2][0, 2:10, 2:10].flatten(2).mean((0, 1))
    expected = layer.to_out.bias[:, None, None].expand(12, 12, 12).clone()
    expected[:, 4:8, 4:8] = layer.to_out(v)[:, None, None]
    assert_close(out[0], expected, 1e-12)


@pytest.mark.parametrize("padding", ["mask", "attend"])
def test_reads_its_window_and_nothing_else(padding: str) -> None:
    """A pixel sees all of its block's window and no pixel beyond it."""
    layer = make(block_size=4, halo_size=2, padding=padding)
    x = torch.randn(1, 12, 11, 13, dtype=torch.double, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x)[0, :, 5, 6].sum(), x)
    seen = grad[0].abs().sum(0) > 0
    expected = torch.zeros(11, 13, dtype=torch.bool)
    expected[2:10, 2:10] = True
    assert torch.equal(seen, expected)


def test_batch_and_channels_last_do_not_matter() -> None:
    """Samples are independent, and the layout in memory changes nothing."""
    layer = make()
    x = torch.randn(3, 12, 9, 10, dtype=torch.double)
    out = layer(x)
    assert_close(layer(x[1:2]), out[1:2], 1e-12)
    assert_close(layer(x.contiguous(memory_format=torch.channels_last)), out, 1e-12)


@pytest.mark.parametrize("options", [{}, {"qkv_bias": True, "rel_pos": "split"}, {"stride": 2}])
def test_large_maps_one_at_a_time_are_the_same(options: dict[str, Any]) -> None:
    """Sharing memory between the maps of a batch changes neither results nor gradients."""
    layer = HaloAttention(32, 8, 4, 16, 2, **options).double()
    x = torch.randn(3, 32, 24, 40, dtype=torch.float64, requires_grad=True)
    found = []
    for large in (1, 1 << 40):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("foveal.layers.halo._LARGE_MAP", large)
            out = layer(x)
            given = (x, *layer.parameters())
            found.append((out, *torch.autograd.grad(out.square().sum(), given)))
    for one, whole in zip(*found, strict=True):
        assert_close(one, whole, 1e-12)


def test_dropout_only_while_training() -> None:
    """Dropout changes the training output, keeps its mean, and is off in evaluation."""
    layer, plain = make(dropout=0.5), make()
    layer.load_state_dict(plain.state_dict())
    x = torch.randn(1, 12, 16, 16, dtype=torch.double)
    assert_close(layer.eval()(x), plain(x), 1e-12)
    layer.train()
    assert not torch.allclose(layer(x), plain(x))
    mean = layer(x.expand(200, -1, -1, -1)).mean(0, keepdim=True)
    assert_close(mean, plain(x), 0.2)


def test_autocast_to_bfloat16() -> None:
    """Under autocast the layer computes in bfloat16 and stays close."""
    layer = make().float()
    x = torch.randn(1, 12, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16
    assert_close(out, layer(x), 0.03)


@pytest.mark.parametrize("padding", ["mask", "attend"])
def test_compiles_whole_with_gradients(padding: str) -> None:
    """torch.compile(fullgraph=True) gives the same outputs and gradients."""
    layer = make(padding=padding, stride=2).float()
    x = torch.randn(1, 12, 13, 20, requires_grad=True)
    torch._dynamo.reset()
    backend = "aot_eager_default_partitioner"  # what is cheap to compute again is torch's affair
    compiled = torch.compile(layer, fullgraph=True, backend=backend)(x)
    assert_same_gradients(gradients(layer, x, compiled), gradients(layer, x, layer(x)), 1e-5)


@pytest.mark.usefixtures("nothing_kept")
@pytest.mark.parametrize("padding", ["mask", "attend"])
def test_exports_with_dynamic_sizes(padding: str) -> None:
    """One exported program serves all batches, heights and widths of more than a block."""
    layer = make(padding=padding).float().eval()
    dynamic = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        layer,
        (torch.randn(2, 12, 20, 24),),
        dynamic_shapes=({0: dynamic, 2: dynamic, 3: dynamic},),
    ).module()
    for shape in [(1, 12, 17, 33), (3, 12, 32, 16)]:
        x = torch.randn(shape)
        assert_close(program(x), layer(x), 1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 2, "block_size": 7}, "stride must divide the block"),
        ({"padding": "zeros"}, "padding must be 'mask'"),
        ({"rel_pos": "absolute"}, "rel_pos must be 'sum'"),
        ({"rel_pos": "split", "dim_head": 5}, "must be even"),
        ({"out_proj": False, "dim_out": 3}, "dim_out must be 12"),
        ({"heads": 0}, "heads must be a positive int"),
        ({"value_ratio": 0.0}, "value_ratio leaves no feature"),
        ({"halo_size": -1}, "halo_size"),
    ],
)
def test_errors_name_the_argument(options: dict[str, Any], message: str) -> None:
    """Wrong arguments are refused with their name and value."""
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_wrong_input_is_named() -> None:
    """A map with other channels is refused with both shapes."""
    with pytest.raises(ValueError, match=r"\(batch, 12, height, width\), got \(1, 11, 4, 4\)"):
        make()(torch.randn(1, 11, 4, 4, dtype=torch.double))


class Adapter(nn.Module):
    """LoRA: wraps a Linear, shows its weight and bias, and adds to what it gives."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.more = nn.Linear(base.in_features, base.out_features, bias=False).double()
        self.weight, self.bias = base.weight, base.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.more(x)


def merged(base: nn.Linear, wrapped: Adapter) -> nn.Linear:
    """What an adapter comes to, as one Linear."""
    whole = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None).double()
    whole.weight = nn.Parameter(base.weight.detach() + wrapped.more.weight.detach())
    if base.bias is not None:
        whole.bias = nn.Parameter(base.bias.detach().clone())
    return whole


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", ["to_q", "to_kv", "to_out"])
def test_a_wrapped_projection_is_called(name: str, batch: int, stride: int) -> None:
    """An adapter changes the result as its merged weight does, and gets a gradient."""
    layer = make(stride=stride, qkv_bias=name == "to_kv")
    base = getattr(layer, name)
    wrapped = Adapter(base)
    x = torch.randn(batch, 12, 13, 9, dtype=torch.double)
    setattr(layer, name, wrapped)
    out = layer(x)
    out.square().sum().backward()
    assert wrapped.more.weight.grad.abs().sum() > 0  # type: ignore[union-attr]
    setattr(layer, name, merged(base, wrapped))
    assert_close(out, layer(x), 1e-12)


@pytest.mark.parametrize("name", ["to_q", "to_kv", "to_out"])
def test_pruning_and_hooks_of_a_projection(name: str) -> None:
    """Pruned weights are zero in the result; a hook runs once a call, on the whole batch."""
    layer = HaloAttention(dim=128, block_size=8, halo_size=1, dim_head=8, heads=2)
    x = torch.randn(2, 128, 64, 64)
    before = layer(x)
    seen = []
    handle = getattr(layer, name).register_forward_hook(
        lambda m, i, out: seen.append(out.shape[0])
    )
    assert_close(layer(x), before, 1e-5)
    assert seen == [2]
    handle.remove()
    prune.random_unstructured(getattr(layer, name), "weight", 0.5)
    pruned = layer(x)
    assert (pruned - before).abs().max() > 1e-3
    prune.remove(getattr(layer, name), "weight")
    assert_close(layer(x), pruned, 1e-5)


def test_a_gradient_of_a_map_keeps_its_layout() -> None:
    """The gradient of a channels-first map lies channels first: it is not copied on its way."""
    layer = make()
    x = torch.randn(1, 12, 16, 16, dtype=torch.double, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(x).sum(), x)
    assert grad.is_contiguous()
