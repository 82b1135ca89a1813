"""cost() beside operations that are counted by hand, family by family."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

import foveal
from foveal import models as M
from foveal import patterns as P
from foveal.layers import HaloAttention
from foveal.models import cost


def linear(tokens: int, *sizes: int) -> int:
    """Projections from each size to the next, of so many tokens."""
    return sum(2 * tokens * before * after for before, after in pairwise(sizes))


def attention(pairs: int, heads: int, dim_head: int) -> int:
    """Both products, of the pairs of one head."""
    return 2 * pairs * heads * 2 * dim_head


def test_transformer_of_two_layers():
    """Grouped keys, a gated feed-forward and tied logits; each layer has pairs of its own."""
    patterns = [P.SlidingWindow(5), P.Full(causal=True)]
    sizes = {"num_tokens": 20, "dim": 8, "heads": 2, "dim_head": 4, "kv_heads": 1}
    model = M.TransformerLM(
        **sizes, depth=2, activation="swiglu", pattern=patterns, tie_embeddings=True
    )
    n = 60
    layer = linear(n, 8, 8 + 4 + 4) + linear(n, 8, 8) + linear(n, 8, 64) + linear(n, 32, 8)
    pairs = 5 * n - 10 + n * (n + 1) // 2  # a window of five, and everything before
    found = cost(model, torch.zeros(3, n, dtype=torch.long))
    assert found.flops == 3 * (2 * layer + attention(pairs, 2, 4) + linear(n, 8, 20))
    assert found.length == 180
    assert found.flops_per_token == found.flops / 180
    # keys and values of one head of four numbers: five tokens in one layer, all in the other
    assert found.cache_bytes_per_token == pytest.approx(3 * 2 * 4 * 4 * (5 + n) / 180)


def test_hourglass():
    """The layers in the middle run on a third of the tokens, and so does their attention."""
    model = M.HourglassTransformerLM(
        num_tokens=20, dim=8, heads=2, dim_head=4, depth=(1, 2, 1), shorten_factor=3,
        attn_resampling=False, updown_sample_type="linear", max_seq_len=64,
    )  # fmt: skip

    def layer(n: int) -> int:
        projected = linear(n, 8, 24) + linear(n, 8, 8) + linear(n, 8, 32, 8)
        return projected + attention(n * (n + 1) // 2, 2, 4)

    resampled = linear(20, 24, 8) + linear(20, 8, 24)
    assert cost(model, 60).flops == 2 * layer(60) + 2 * layer(20) + resampled + linear(60, 8, 20)


def test_dalle():
    """A text of three and a picture of six tokens, which sees the logits of its own words only."""
    model = M.DALLE(
        dim=12, heads=2, dim_head=6, depth=1, num_text_tokens=11, text_seq_len=3,
        num_image_tokens=7, image_grid=(2, 3), attn_types=("full",),
    )  # fmt: skip
    n = 1 + 3 + 6 - 1  # the start; the last token of a picture is not read
    layer = linear(n, 12, 36) + linear(n, 12, 12) + linear(n, 12, 96) + linear(n, 48, 12)
    logits = linear(3, 12, 11 + 3) + linear(n - 3, 12, 7)
    assert cost(model).flops == layer + attention(n * (n + 1) // 2, 2, 6) + logits


def test_clip():
    """A text of five tokens and a picture of four patches, each through a tower of its own."""
    model = M.CLIP(
        dim_text=8, dim_image=12, dim_latent=4, num_text_tokens=20, text_enc_depth=1,
        text_seq_len=5, text_heads=1, visual_enc_depth=2, visual_heads=2, visual_image_size=(6, 5),
        visual_patch_size=3,
    )  # fmt: skip

    def layer(n: int, dim: int, heads: int) -> int:
        inner = 64 * heads
        projected = linear(n, dim, 3 * inner) + linear(n, inner, dim)
        forward = linear(n, dim, 8 * dim) + linear(n, 4 * dim, dim)
        return projected + forward + attention(n * n, heads, 64)

    towers = layer(5, 8, 1) + 2 * layer(4, 12, 2)
    assert cost(model).flops == towers + linear(4, 27, 12) + linear(1, 8, 4) + linear(1, 12, 4)


def test_vqvae():
    """Convolutions of width 4 and stride 2 down and up, and the distances to the codebook."""
    vae = M.VQVAE(image_size=8, num_tokens=7, codebook_dim=5, num_layers=1, hidden_dim=4)
    down, to_codes = 2 * 16 * 16 * 3 * 4, linear(16, 4, 5)
    distances = linear(16, 5, 7)
    up, to_pixels = 2 * 16 * 16 * 5 * 4, linear(64, 4, 3)
    whole = down + to_codes + distances + up + to_pixels
    assert cost(vae).flops == whole
    assert cost(vae, torch.zeros(5, 3, 8, 8)).flops == 5 * whole


def test_halo_attention():
    """Any module with its inputs: projections, the pairs inside the map, relative positions."""
    layer = HaloAttention(dim=8, block_size=4, halo_size=1, dim_head=4, heads=2)
    n = 8 * 12
    # along an axis a block reads its 4 pixels, and one more on each side that has a neighbour
    rows, columns = 4 * (5 + 5), 4 * (5 + 6 + 5)
    positions = 2 * n * 2 * 4 * (9 + 9)  # a key of the window is from 4 before to 4 behind
    expected = linear(n, 8, 24) + linear(n, 8, 8) + attention(rows * columns, 2, 4) + positions
    assert cost(layer, torch.zeros(1, 8, 8, 12)).flops == expected


def test_what_cannot_be_measured_is_named():
    """No inputs for a module that says none, and sizes that are none."""
    with pytest.raises(ValueError, match="inputs must be given for a Linear"):
        cost(nn.Linear(2, 3))
    net = foveal.create_model("halonet_h0", num_classes=2)
    for size in (0, (0, 5), -3):
        with pytest.raises(ValueError, match="length must be at least 1"):
            cost(net, size)


def test_a_large_model_takes_no_memory():
    """Weights are not copied: twelve billion of them are measured on any machine."""
    with torch.device("meta"):
        model = foveal.create_model("dalle_12b")
    found = cost(model)
    assert found.parameters > 10**10
    assert found.flops > 2 * found.parameters * 1000


SMALL = ("dalle_tiny", "discrete_vae", "halonet_cifar", "hourglass_tiny", "htransformer_small")


@pytest.mark.parametrize("name", [*SMALL, "sepvit_cifar", "transformer_tiny", "vqvae"])
def test_named_models_know_their_cost(name):
    """A model that list_models() names is measured without inputs, at the size it is made for."""
    with torch.device("meta"):
        model = foveal.create_model(name)
    found = cost(model)
    assert found.flops > found.parameters
    assert (found.cache_bytes_per_token > 0) == getattr(model, "is_causal", False)
