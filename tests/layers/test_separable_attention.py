"""DSSA and SeparableAttention against vit-pytorch and against loops over windows."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from foveal.layers import DSSA, SeparableAttention
from foveal.testing import assert_close


@pytest.mark.parametrize("size", [(8, 12), (4, 4)])
def test_dssa_equals_vit_pytorch(size: tuple[int, int], peer: Callable[[str], ModuleType]) -> None:
    """Same weights, same outputs; with one window as well, and no parameter without gradient."""
    torch.manual_seed(0)
    theirs = peer("vit_pytorch.sep_vit").DSSA(24, heads=3, dim_head=8, window_size=4).double()
    ours = DSSA(24, heads=3, dim_head=8, window_size=4).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 24, *size, dtype=torch.double)
    assert_close(ours(x), theirs(x), 1e-12)
    ours(x).square().sum().backward()
    theirs(x).square().sum().backward()
    expected = dict(theirs.named_parameters())
    for name, value in ours.named_parameters():
        assert value.grad is not None, name
        if expected[name].grad is not None:
            assert_close(value.grad, expected[name].grad, 1e-10, name)


def windows_of(x: Tensor, window: int) -> dict[tuple[int, int], Tensor]:
    """The pixels (height, width, dim) of each window, cut at the border of the map."""
    return {
        (i, j): x[i : i + window, j : j + window]
        for i in range(0, x.shape[0], window)
        for j in range(0, x.shape[1], window)
    }


def mix(shares: Tensor, found: list[Tensor], pixel: tuple[int, int]) -> Tensor:
    """Weighted mean over the windows that have the pixel; found[w] (height, width, dim)."""
    having = [w for w, f in enumerate(found) if pixel[0] < f.shape[0] and pixel[1] < f.shape[1]]
    weights = shares[having] / shares[having].sum()
    return sum(weight * found[w][pixel] for weight, w in zip(weights, having, strict=True))


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.T * q.shape[-1] ** -0.5).softmax(-1) @ v


def test_dssa_with_padding_equals_a_loop_over_real_pixels() -> None:
    """Where windows leave the map, nobody reads what is not there."""
    torch.manual_seed(0)
    layer = DSSA(8, heads=1, dim_head=8, window_size=4).double()
    x = torch.randn(1, 8, 6, 7, dtype=torch.double)
    normed = layer.norm(x)[0].permute(1, 2, 0)
    tokens, maps = [], []
    for pixels in windows_of(normed, 4).values():
        t = torch.cat((layer.window_tokens[None], pixels.flatten(0, 1)))
        q, k, v = (t @ layer.to_qkv.weight[..., 0].T).chunk(3, -1)
        out = softmax_attention(q, k, v)
        tokens.append(out[0])
        maps.append(out[1:].unflatten(0, pixels.shape[:2]))
    norm, _, _, project = layer.window_tokens_to_qk
    qk = gelu(norm(torch.stack(tokens))) @ project.weight[..., 0].T + project.bias
    q, k = qk.chunk(2, -1)
    shares = (q @ k.T * 8**-0.5).softmax(-1)
    expected = torch.zeros(6, 7, 8, dtype=torch.double)
    for w, (i, j) in enumerate(windows_of(normed, 4)):
        for y in range(maps[w].shape[0]):
            for z in range(maps[w].shape[1]):
                expected[i + y, j + z] = mix(shares[w], maps, (y, z))
    expected = expected @ layer.to_out[0].weight[..., 0, 0].T + layer.to_out[0].bias
    assert_close(layer(x)[0].permute(1, 2, 0), expected, 1e-12)


def test_separable_attention_equals_a_loop() -> None:
    """The authors' formulas, window by window, on a map that the window does not divide."""
    torch.manual_seed(0)
    layer = SeparableAttention(8, heads=1, window_size=4, grid=(2, 2)).double()
    assert layer.win_tokens is not None
    torch.nn.init.normal_(layer.win_tokens)
    x = torch.randn(1, 6, 7, 8, dtype=torch.double)
    tokens, maps = [], []
    for w, pixels in enumerate(windows_of(x[0], 4).values()):
        t = layer.norm(torch.cat((layer.win_tokens[0, w], pixels.flatten(0, 1))))
        out = softmax_attention(*layer.to_qkv(t).chunk(3, -1)) + t
        tokens.append(out[0])
        maps.append(out[1:].unflatten(0, pixels.shape[:2]))
    found = gelu(layer.win_norm(torch.stack(tokens)))
    q, k = layer.win_qk(found).chunk(2, -1)
    shares = (q @ k.T * 8**-0.5).softmax(-1)
    expected = torch.zeros(6, 7, 8, dtype=torch.double)
    for w, (i, j) in enumerate(windows_of(x[0], 4)):
        for y in range(maps[w].shape[0]):
            for z in range(maps[w].shape[1]):
                expected[i + y, j + z] = mix(shares[w], maps, (y, z)) + maps[w][y, z]
    assert_close(layer(x)[0], layer.to_out(expected), 1e-12)


def test_one_window_is_global_attention() -> None:
    """With a grid of one window the layer has no window tokens and reads the whole map."""
    torch.manual_seed(0)
    layer = SeparableAttention(8, heads=2, window_size=7, grid=(1, 1)).double()
    assert not [name for name, _ in layer.named_parameters() if name.startswith("win")]
    x = torch.randn(1, 9, 11, 8, dtype=torch.double)
    t = layer_norm(x, (8,), layer.norm.weight, layer.norm.bias, 1e-6).flatten(0, 2)
    q, k, v = layer.to_qkv(t).chunk(3, -1)
    heads = [slice(0, 4), slice(4, 8)]
    out = torch.cat([softmax_attention(q[:, h], k[:, h], v[:, h]) for h in heads], -1)
    assert_close(layer(x).flatten(0, 2), layer.to_out(out + t), 1e-12)


def test_window_tokens_follow_the_size() -> None:
    """Other grids interpolate the tokens; the grid of training uses them as they are."""
    layer = SeparableAttention(4, heads=1, window_size=2, grid=(2, 3))
    assert layer.win_tokens is not None
    torch.nn.init.normal_(layer.win_tokens)
    windows = torch.zeros(1, 6, 4, 4)
    assert torch.equal(layer._tokens(windows, [2, 3]), layer.win_tokens)
    larger = layer._tokens(torch.zeros(1, 30, 4, 4), [5, 6])
    image = layer.win_tokens.view(1, 2, 3, 4).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(image, size=(5, 6), mode="bilinear")
    assert_close(larger[0, :, 0], expected[0].flatten(1).T, 1e-5)


def test_zero_window_tokens_have_no_parameter() -> None:
    """window_tokens="zero" leaves the tokens out of the parameters, not out of the layer."""
    layer = SeparableAttention(8, heads=2, window_size=4, grid=(2, 2), window_tokens="zero")
    assert layer.win_tokens is None
    out = layer(torch.randn(2, 8, 8, 8))
    out.sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


@pytest.mark.parametrize("kind", [DSSA, SeparableAttention])
def test_dropout_only_while_training(kind: type) -> None:
    """Dropout is honoured, and off in evaluation."""
    torch.manual_seed(0)
    layer = kind(16, heads=2, dropout=0.5, window_size=4)
    x = torch.randn(1, 16, 16, 16)
    assert not torch.allclose(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_errors_name_the_argument() -> None:
    """Wrong arguments are refused with their name."""
    with pytest.raises(ValueError, match="heads must divide dim"):
        SeparableAttention(10, heads=3)
    with pytest.raises(ValueError, match="window_tokens must be"):
        SeparableAttention(8, heads=2, window_tokens="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"x must be \(batch, 8"):
        DSSA(8)(torch.randn(1, 4, 7, 7))
    with pytest.raises(ValueError, match="window_size"):
        DSSA(8, window_size=0)
