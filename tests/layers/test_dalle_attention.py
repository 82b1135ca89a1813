"""The attention layers of DALL-E: as dalle-pytorch where it is right, as the oracle elsewhere."""

from __future__ import annotations

import pytest
import torch

from foveal import layers
from foveal.layers.grid_rotary import Rotation, text_image_angles
from foveal.patterns import BlockSparse

LENGTH, SIDE, TEXT = 20, 4, 5  # four words and the start token, then 4 x 4 pixels
SIZES = {"heads": 2, "dim_head": 16}
KINDS = {
    "full": ("Attention", {}),
    "full, not causal": ("Attention", {"causal": False}),
    "conv 3": ("SparseConvCausalAttention", {"kernel_size": 3, "image_size": SIDE}),
    "conv 5": ("SparseConvCausalAttention", {"image_size": SIDE}),
    "conv 3, dilated": (
        "SparseConvCausalAttention",
        {"kernel_size": 3, "dilation": 2, "image_size": SIDE},
    ),
    "rows": ("SparseAxialCausalAttention", {"axis": 0, "image_size": SIDE}),
    "columns": ("SparseAxialCausalAttention", {"axis": 1, "image_size": SIDE}),
}
ANGLES = text_image_angles(TEXT, (SIDE, SIDE), 16)[None]


def make(name: str, **options):
    torch.manual_seed(0)
    kind, own = KINDS[name]
    return getattr(layers, kind)(32, LENGTH, **{**SIZES, **own, **options}).eval()


def oracle(layer, x, allowed):
    """The layer in float64 where `allowed` (batch, queries, keys) says who reads whom."""
    layer = layer.double()
    q, k, v = (
        part.unflatten(-1, (-1, 16)).transpose(1, 2)
        for part in layer.to_qkv(x.double()).chunk(3, -1)
    )
    scores = (q @ k.mT / 4).masked_fill(~allowed[:, None], -torch.inf)
    weights = scores.softmax(-1).nan_to_num(0.0)
    out = (weights @ v).transpose(1, 2).flatten(2)
    result = layer.to_out(out).float()
    layer.float()
    return result


@pytest.mark.parametrize("name", KINDS)
def test_equals_the_package(name, peer):
    """With the package's weights: the same to 1e-5 at every length, with and without rotary."""
    kind, options = KINDS[name]
    torch.manual_seed(0)
    theirs = getattr(peer("dalle_pytorch.attention"), kind)(32, LENGTH, **SIZES, **options).eval()
    ours = make(name)
    ours.load_state_dict(theirs.state_dict())
    for n in range(1, LENGTH + 1):
        x = torch.randn(2, n, 32)
        for rotary in (None, ANGLES):
            with torch.no_grad():
                wanted = theirs(x, rotary_pos_emb=rotary)
                got = ours(x, rotary_pos_emb=rotary)
            torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_angles_are_the_packages(peer):
    """Rotary angles of text and image equal the buffer of the package's transformer."""
    theirs = peer("dalle_pytorch.transformer").Transformer(
        dim=32, depth=1, seq_len=LENGTH, heads=2, dim_head=64, image_fmap_size=SIDE
    )
    assert torch.equal(text_image_angles(TEXT, (SIDE, SIDE), 64), theirs.pos_emb[0])


@pytest.mark.parametrize("name", KINDS)
def test_a_text_mask_holds_for_text_and_image(name):
    """Masked words are read by nobody; a query with nothing to read gives the bias, not NaN."""
    layer = make(name)
    mask = torch.tensor([[False, False, True, True, False], [True, True, False, True, True]])
    for n in (3, TEXT, 13, LENGTH + 1):
        x = torch.randn(2, n, 32)
        keys = torch.nn.functional.pad(mask[:, :n], (0, max(0, n - TEXT)), value=True)
        allowed = layer.pattern.mask(n) & keys[:, None]
        with torch.no_grad():
            torch.testing.assert_close(
                layer(x, mask=mask), oracle(layer, x, allowed), atol=1e-5, rtol=1e-5
            )


@pytest.mark.parametrize("name", ["conv 3", "rows", "columns"])
def test_not_causal(name):
    """causal=False: text reads all text; a pixel all text and its whole row, column or window."""
    layer = make(name, causal=False)
    x = torch.randn(1, LENGTH + 1, 32)
    allowed = torch.zeros(LENGTH + 1, LENGTH + 1, dtype=torch.bool)
    allowed[:, :TEXT] = True
    for i in range(SIDE * SIDE):
        for j in range(SIDE * SIDE):
            (y, x_), (v, u) = divmod(i, SIDE), divmod(j, SIDE)
            near = abs(y - v) <= 1 and abs(x_ - u) <= 1
            reads = {"conv 3": near, "rows": y == v, "columns": x_ == u}[name]
            allowed[TEXT + i, TEXT + j] = reads
    with torch.no_grad():
        torch.testing.assert_close(layer(x), oracle(layer, x, allowed[None]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["conv 3", "rows", "columns"])
def test_rectangular_images(name):
    """(height, width) grids: every position equals the oracle of the pattern."""
    layer = make(name, image_size=(2, 8))
    assert layer.pattern.image_pattern.size == (2, 8)
    x = torch.randn(1, LENGTH + 1, 32)
    allowed = layer.pattern.mask(LENGTH + 1)[None]
    with torch.no_grad():
        torch.testing.assert_close(layer(x), oracle(layer, x, allowed), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [n for n in KINDS if n != "full, not causal"])
@pytest.mark.parametrize("masked", [False, True], ids=["", "mask"])
def test_cache(name, masked):
    """The package's cache protocol: token by token equals the forward pass, for every kind."""
    layer = make(name)
    x = torch.randn(2, LENGTH, 32)
    mask = torch.tensor([[False, True, True, True, True]] * 2) if masked else None
    cache: dict = {"offset": 0}
    with torch.no_grad():
        wanted = layer(x, mask, ANGLES)
        parts = []
        for first, last in ((0, 6), *((i, i + 1) for i in range(6, 18)), (18, 20)):
            parts.append(layer(x[:, first:last], mask, ANGLES, cache, "layer"))
            cache["offset"] += last - first
    torch.testing.assert_close(torch.cat(parts, 1), wanted, atol=1e-5, rtol=1e-5)


def test_a_cache_at_another_offset_is_refused():
    """A forgotten cache["offset"] is named, and does not decode nonsense."""
    layer, cache = make("rows"), {"offset": 3}
    with pytest.raises(ValueError, match=r"cache\['offset'\] = 3, got nothing"):
        layer(torch.randn(1, 1, 32), cache=cache, cache_key=0)


def test_static_mask():
    """static_mask limits what is read, and equals the layer made for it."""
    rows = make("rows")
    layer = make("full", static_mask=rows.pattern.mask(LENGTH))
    layer.load_state_dict(rows.state_dict())
    x = torch.randn(2, LENGTH, 32)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), rows(x), atol=1e-5, rtol=1e-5)


def test_block_sparse():
    """SparseAttention runs without DeepSpeed, over the package's choice of layout."""
    layer = layers.SparseAttention(32, 80, text_seq_len=20, **SIZES).eval()
    assert isinstance(layer.pattern, BlockSparse)
    x = torch.randn(2, 70, 32)
    mask = torch.rand(2, 20) > 0.3
    keys = torch.nn.functional.pad(mask, (0, 50), value=True)
    allowed = layer.pattern.mask(70) & keys[:, None]
    with torch.no_grad():
        torch.testing.assert_close(layer(x, mask), oracle(layer, x, allowed), atol=1e-5, rtol=1e-5)
    both_ways = layers.SparseAttention(32, 80, causal=False, text_seq_len=20, **SIZES)
    assert both_ways.pattern.mask(80)[0, 17]


@pytest.mark.parametrize("name", KINDS)
def test_gradients_without_rotary_and_one_head(name):
    """Training works with one head and a batch of one, where the package fails."""
    layer = make(name, heads=1).train()
    x = torch.randn(1, LENGTH, 32, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert all(p.grad is not None for p in layer.parameters())


def test_values_are_turned_only_on_request():
    """With rotate_values=False identical tokens give identical outputs at every position."""
    x = torch.randn(1, 1, 32).expand(1, LENGTH, 32)
    with torch.no_grad():
        still = make("full", rotate_values=False)(x, rotary_pos_emb=ANGLES)
        turned = make("full")(x, rotary_pos_emb=ANGLES)
    torch.testing.assert_close(still, still[:, :1].expand_as(still), atol=1e-5, rtol=1e-5)
    assert (turned - turned[:, :1]).abs().max() > 1e-2


def test_rotation_of_odd_heads():
    """Features beyond the angles stay, also where a head has an odd number of them."""
    x = torch.randn(1, 3, 2, 7)
    turned = Rotation.of(torch.randn(3, 2).repeat_interleave(2, -1), 7).turn(x)
    assert torch.equal(turned[..., 4:], x[..., 4:])
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


def test_bad_arguments_are_named():
    """Errors carry the argument, its value and what was expected."""
    with pytest.raises(ValueError, match="kernel_size must be odd, got kernel_size=4"):
        make("conv 3", kernel_size=4)
    with pytest.raises(ValueError, match="axis must be 0"):
        make("rows", axis=2)
    with pytest.raises(ValueError, match="5 x 5 = 25 tokens, got seq_len=20"):
        make("rows", image_size=5)
    with pytest.raises(ValueError, match=r"at most seq_len \+ 1 = 21 tokens, got 22"):
        make("rows")(torch.randn(1, 22, 32))
    with pytest.raises(ValueError, match="mask must be"):
        make("rows")(torch.randn(1, 8, 32), mask=torch.ones(1, 8))
