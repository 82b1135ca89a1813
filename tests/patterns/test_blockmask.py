"""The analytic BlockMask says the same as FlexAttention's own, built from n^2 pairs."""

import importlib
import warnings

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, create_mask, flex_attention

from foveal.patterns.axial import Axial
from foveal.patterns.block_sparse import BlockSparse
from foveal.patterns.blockmask import analytic_block_mask, mask_mod
from foveal.patterns.blocks import Blocks
from foveal.patterns.fixed import Fixed
from foveal.patterns.full import Full
from foveal.patterns.halo import Halo
from foveal.patterns.neighborhood import Neighborhood
from foveal.patterns.strided import Strided
from foveal.patterns.text_image import TextImage
from foveal.patterns.window import SlidingWindow
from foveal.testing import dense_attention

SIZE = (9, 11)


def layout(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.4


PATTERNS = [
    Full(),
    Full(causal=True),
    SlidingWindow(5),
    SlidingWindow(40, causal=False),
    Blocks(6, causal=True, lookback=1),
    Halo(SIZE, 4, 2),
    Neighborhood(SIZE, 3, 2),
    Neighborhood(SIZE, 5, causal="raster"),
    Neighborhood(SIZE, 3, causal="corner"),
    Neighborhood(SIZE, 5, border="shift"),
    Axial(SIZE, "row", causal=True, wrap=True),
    Axial(SIZE, "column"),
    TextImage(10, Axial(SIZE, "column", causal=True)),
    Strided(7),
    Strided(30, causal=False),
    Fixed(8, 2),
    Fixed(32, 4, causal=False),
    BlockSparse(layout(12, 12), 9, causal=True),
    BlockSparse(layout(2, 12, 12), 9),
    BlockSparse(layout(2, 12, 12), 9) | SlidingWindow(3),
    TextImage(5, BlockSparse(layout(2, 12, 12), 9, causal=True)),
    Blocks(20) & Strided(4),
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@pytest.mark.parametrize("length", [1, 70, 99])
def test_same_pairs_as_create_block_mask(pattern, length):
    """Block by block: nothing that FlexAttention visits is missing, nothing partial is full."""
    ours = analytic_block_mask(pattern, length, 16)
    theirs = create_block_mask(
        mask_mod(pattern), None, pattern.heads, length, length, device="cpu", BLOCK_SIZE=16
    )
    assert ours.seq_lengths == theirs.seq_lengths
    assert bool((ours.to_dense() >= theirs.to_dense()).all())
    assert bool((full_blocks(ours) <= full_blocks(theirs)).all())
    heads = pattern.heads or 1
    dense = create_mask(ours.mask_mod, 1, heads, length, length, device="cpu")
    assert torch.equal(dense[0], pattern.mask(length).expand(heads, length, length))


def full_blocks(mask) -> torch.Tensor:
    """(heads, blocks, blocks): blocks that are visited without a mask."""
    count, index = mask.full_kv_num_blocks[0], mask.full_kv_indices[0]
    on = torch.zeros(index.shape, dtype=torch.int)
    listed = torch.arange(index.shape[-1]) < count[..., None]
    return on.scatter_(-1, index.long(), listed.int())


@pytest.mark.parametrize(
    "pattern",
    [p for p in PATTERNS if isinstance(p, Full | SlidingWindow | Strided | BlockSparse)],
    ids=repr,
)
def test_exact_overlap_gives_the_tightest_mask(pattern):
    """Where the overlap is exact no block is visited in vain and full blocks are found."""
    ours = analytic_block_mask(pattern, 99, 16)
    theirs = create_block_mask(
        mask_mod(pattern), None, pattern.heads, 99, 99, device="cpu", BLOCK_SIZE=16
    )
    assert torch.equal(ours.to_dense(), theirs.to_dense())
    assert torch.equal(full_blocks(ours), full_blocks(theirs))


@pytest.fixture
def untraced(monkeypatch):
    """FlexAttention's plain operations without the tracing of each call, most of its time."""
    module = importlib.import_module("torch.nn.attention.flex_attention")
    monkeypatch.setattr(module, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_eager_flex_attention_equals_the_oracle(pattern):
    """flex_attention with our mask computes the masked attention, empty rows included."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 70, 16, generator=generator).unbind()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", "flex_attention called without")
        out = flex_attention(q, k, v, block_mask=pattern.block_mask(70, 32))
    expected, _ = dense_attention(q, k, v, pattern.mask(70))
    assert (out - expected).abs().max() < 1e-5


def test_strided_queries():
    """Fewer queries than keys: as many rows of blocks as the queries fill."""
    pattern = Halo((12, 14), 4, 1, query_stride=2)
    ours = analytic_block_mask(pattern, 168, 16)
    assert ours.seq_lengths == (42, 168)
    theirs = create_block_mask(mask_mod(pattern), None, None, 42, 168, device="cpu", BLOCK_SIZE=16)
    assert bool((ours.to_dense() >= theirs.to_dense()).all())


def test_long_sequences_need_no_dense_mask():
    """A million tokens with blocks of 4,096: n^2 pairs would be 10^12."""
    mask = analytic_block_mask(SlidingWindow(4096), 1_000_000, 4096)
    assert mask.kv_num_blocks.max() == 2


def test_errors():
    """A block that is no size, and a length that the pattern cannot bear."""
    with pytest.raises(ValueError, match="block"):
        analytic_block_mask(Full(), 10, 0)
    with pytest.raises(ValueError, match="length"):
        analytic_block_mask(Halo(3), 10)
