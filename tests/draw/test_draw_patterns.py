"""Pictures of patterns: right numbers behind them, and files that are pictures."""

import struct

import pytest
import torch

from foveal.draw.biases import draw_bias
from foveal.draw.patterns import (
    Canvas,
    draw_pattern,
    find_canvas,
    natural_length,
    shares,
    sharpness,
)
from foveal.patterns import (
    Axial,
    Blocks,
    Documents,
    Full,
    Halo,
    Neighborhood,
    Packed,
    Part,
    Prefix,
    Pyramid,
    SlidingWindow,
    TextImage,
)
from foveal.patterns.block_sparse import BlockSparse
from foveal.patterns.strided import Strided

COARSE = {"dpi": 50, "bbox_inches": None}  # what is cut off is matplotlib's affair
LAYOUTS = torch.rand(3, 5, 5, generator=torch.Generator().manual_seed(0)) < 0.5


def png_size(content: bytes) -> tuple[int, int]:
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", content[16:24])


@pytest.mark.parametrize(
    "pattern",
    [
        Full(),
        SlidingWindow(8),
        Halo((6, 10), 4, 1),
        Halo((6, 10), 4, 1, query_stride=2),
        Neighborhood((7, 9), 3, 2),
        TextImage(11, Axial((4, 6), "column", causal=True)),
        TextImage(11, Axial((3, 4, 6), "frames", causal=True)),
        Halo((14, 4, 6), 2, 1, query_stride=2),
        Blocks((2, 3), size=(4, 7), shift=(1, 0)),
        Neighborhood((40,), 6),
        BlockSparse(LAYOUTS, 8),
        BlockSparse(LAYOUTS, 8, causal=True) | SlidingWindow(4),
    ],
    ids=repr,
)
@pytest.mark.parametrize("length", [None, 1, 7])
def test_every_kind_of_pattern_is_drawn(pattern, length, tmp_path, monkeypatch):
    """Sequences, images, text before images, heads: a PNG, as bytes or (at 7) as a file."""
    from matplotlib.figure import Figure

    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda *args, **more: save(*args, **more | COARSE))
    if length and getattr(pattern, "query_stride", 1) > 1:
        pytest.skip("strided queries need the whole image")
    if length == 7:
        content = draw_pattern(pattern, length, tmp_path / "pattern.png").read_bytes()
    else:
        content = draw_pattern(pattern, length)
    width, height = png_size(content)
    assert width > 100
    assert height > 100


def test_a_pyramid_is_paler_where_it_is_coarser():
    """Cells of higher levels get less ink, those of other patterns all of it."""
    pyramid = Pyramid(2, causal=True)
    ink = sharpness(pyramid, 16, torch.Size((16, 16)))
    level = pyramid.level(torch.arange(16)[:, None], torch.arange(16)[None])
    assert torch.equal(ink[level == 0].unique(), torch.ones(1))
    assert [len(ink[level == n].unique()) for n in range(int(level.max()) + 1)] == [1, 1, 1]
    assert (ink[15].diff() >= 0).all()
    assert (sharpness(Strided(5), 60, torch.Size((60, 60))) == 1).all()


def test_shares_are_the_mask_or_its_mean():
    """Short masks are drawn pair by pair, long ones as the share of each cell."""
    assert torch.equal(shares(Strided(5), 60), Strided(5).mask(60).float())
    pattern = SlidingWindow(300)
    found = shares(pattern, 2000)
    assert found.shape == (500, 500)
    expected = pattern.mask(2000).view(500, 4, 500, 4).float().mean((1, 3))
    assert torch.equal(found, expected)
    # the last cell of a length that does not divide holds fewer pairs
    assert shares(Full(), 1281).shape == (427, 427)


def test_image_and_natural_length_are_found():
    """(height, width) in this order, through text and through unions."""
    text = TextImage(11, Axial((4, 6), causal=True))
    assert find_canvas(text) == Canvas(4, 6, 11)
    assert find_canvas(Blocks(4) | Halo((6, 10), 4, 1)) == Canvas(6, 10)
    assert find_canvas(TextImage(2, Halo((3, 6, 10), 2, 1))) == Canvas(6, 10, 2, frames=3)
    assert find_canvas(Blocks((2, 3), size=(4, 7))) == Canvas(4, 7)
    assert find_canvas(SlidingWindow(3)) is None
    assert natural_length(Neighborhood((40,), 5)) == 40
    assert natural_length(Axial((3, 4, 6))) == 72
    assert natural_length(text) == 35
    assert natural_length(SlidingWindow(3)) == 64
    assert natural_length(BlockSparse(LAYOUTS, 8)) == 40
    assert natural_length(SlidingWindow(3) | BlockSparse(LAYOUTS, 8)) == 40
    assert natural_length(Documents(())) == 1  # the least that can be drawn


@pytest.mark.parametrize(
    ("pattern", "length"),
    [
        (SlidingWindow(16), 64),
        (SlidingWindow(256), 1024),
        (SlidingWindow(100, causal=False), 256),
        (Strided(64), 256),
        (Blocks(256, causal=True, lookback=1), 1024),
        (Prefix(60) | SlidingWindow(60), 128),
        (Pyramid(4, causal=True), 64),
        (Full(), 64),  # which leaves nothing out at any length
        (SlidingWindow(10**6), 64),
        (Blocks(4, size=(32, 32)), 1024),
    ],
    ids=repr,
)
def test_a_picture_is_long_enough_to_tell(pattern, length):
    """A window that would fill 64 tokens is drawn over more, so that it is seen to be one."""
    assert natural_length(pattern) == length
    assert natural_length(pattern, 512) == (
        length if pattern.natural_length or length < 512 else 64
    )


def test_a_notebook_shows_a_pattern(monkeypatch):
    """Its picture; nothing where it is too large, cannot be drawn, or matplotlib is missing."""
    assert SlidingWindow(4)._repr_png_().startswith(b"\x89PNG")
    drawn = draw_pattern(SlidingWindow(4), 8)
    assert (drawn, repr(drawn)) == (drawn._repr_png_(), f"<PNG, {len(drawn):,} bytes>")
    assert (Full() & SlidingWindow(3))._repr_png_().startswith(b"\x89PNG")
    assert Halo((300, 300), 4, 1)._repr_png_() is None
    assert Halo(3)._repr_png_() is None or Halo(3)._repr_png_().startswith(b"\x89PNG")

    def missing(*_):
        raise ModuleNotFoundError(name="matplotlib")

    monkeypatch.setattr("foveal.draw.patterns.draw_pattern", missing)
    assert SlidingWindow(4)._repr_png_() is None


def test_errors():
    """A length that cannot be drawn, or that the pattern cannot bear."""
    with pytest.raises(ValueError, match="length"):
        draw_pattern(Full(), 0)
    with pytest.raises(ValueError, match="length"):
        draw_pattern(Full(), 10**6)
    with pytest.raises(ValueError, match="length"):
        draw_pattern(Halo(3), 10)
    for empty in (Part(Full(), 3, 0), Packed(Full(), (3,), (0,)), Part(Halo(3), 1, 0)):
        for draw in (draw_pattern, lambda pattern: draw_bias(pattern, "rows")):
            with pytest.raises(ValueError, match="has no queries"):
                draw(empty)
        assert empty._repr_png_() is None


def test_no_global_state_of_pyplot(after_torch):
    """matplotlib comes with the first picture only, and pyplot never."""
    code = """
import sys
import foveal.draw.patterns as d
assert "matplotlib" not in sys.modules
from foveal.patterns import Full
d.draw_pattern(Full(), 4)
assert "matplotlib.pyplot" not in sys.modules
"""
    after_torch(code)
