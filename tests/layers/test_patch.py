"""Patches, positional convolution, channel norm, stochastic depth."""

from __future__ import annotations

import pytest
import torch

from foveal.layers import PEG, ChanLayerNorm, DropPath, OverlappingPatchEmbed
from foveal.layers.patch import PointwiseConv, drop_path_rates
from foveal.testing import assert_close


def test_channel_norm_is_computed_in_float32() -> None:
    """Half precision input of a large scale loses no accuracy but its own rounding."""
    norm = ChanLayerNorm(64)
    x = (torch.randn(2, 64, 5, 7) * 300).half()
    out = norm(x)
    assert out.dtype == torch.float16
    expected = (x.double() - x.double().mean(1, True)) / x.double().std(1, False, True)
    assert_close(out, expected, 1e-3)


def test_channel_norm_in_half_precision_weights() -> None:
    """A model converted to bfloat16 still normalises in float32."""
    norm = ChanLayerNorm(8).to(torch.bfloat16)
    assert norm(torch.randn(1, 8, 3, 3).to(torch.bfloat16)).dtype == torch.bfloat16


def test_pointwise_convolution_is_a_convolution() -> None:
    """Same weights as a Conv2d of width 1, same results in either memory format."""
    ours = PointwiseConv(6, 9)
    plain = torch.nn.Conv2d(6, 9, 1)
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 5, 4)
    assert_close(ours(x), plain(x), 1e-5)


@pytest.mark.parametrize(("stride", "size"), [(4, (8, 10)), (2, (16, 20)), (1, (31, 39))])
def test_patches_overlap(stride: int, size: tuple[int, int]) -> None:
    """Sizes are divided by the stride and rounded up; the kernel is 2 * stride - 1."""
    embed = OverlappingPatchEmbed(3, 5, stride)
    assert embed(torch.randn(1, 3, 31, 39)).shape == (1, 5, *size)
    assert embed.conv.kernel_size == (2 * stride - 1, 2 * stride - 1)


def test_peg_adds_a_depthwise_convolution() -> None:
    """Without weights it is the identity; channels do not mix."""
    peg = PEG(4)
    x = torch.randn(1, 4, 6, 6)
    changed = x.clone()
    changed[:, 0] += 1
    assert torch.equal(peg(x)[:, 1:], peg(changed)[:, 1:])
    torch.nn.init.zeros_(peg.proj.weight)
    torch.nn.init.zeros_(peg.proj.bias)
    assert torch.equal(peg(x), x)


def test_drop_path_drops_whole_samples() -> None:
    """Samples are kept and scaled, or zero; evaluation changes nothing."""
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 2, 2)
    out = drop(x)
    values = out.flatten(1)
    assert torch.equal(values.amin(1), values.amax(1))
    assert set(values[:, 0].tolist()) == {0.0, torch.tensor(4 / 3).item()}
    assert abs(out.mean().item() - 1) < 0.05
    assert drop.eval()(x) is x


def test_drop_path_rates_rise_evenly() -> None:
    """From zero at the first block to the full rate at the last."""
    rates = drop_path_rates(0.3, (1, 3))
    assert [len(stage) for stage in rates] == [1, 3]
    assert [round(rate, 6) for stage in rates for rate in stage] == [0, 0.1, 0.2, 0.3]


def test_errors_name_the_argument() -> None:
    """Even kernels have no middle."""
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        PEG(4, kernel_size=2)
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        OverlappingPatchEmbed(3, 4, 2, kernel_size=4)
    with pytest.raises(ValueError, match="dropout"):
        DropPath(1.0)
