"""Reading pictures: every kind becomes RGB, and what cannot be read is named."""

import io
import os

import numpy as np
import pytest
from PIL import Image

from foveal.data.pictures import UnreadableImageError, load_square, read_picture, resize_and_crop

RED = (200, 30, 40)


def encoded(picture: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def plain(mode: str) -> Image.Image:
    return Image.new("RGB", (6, 4), RED).convert(mode)


@pytest.mark.parametrize(
    "raw",
    [
        encoded(plain("RGB")),
        encoded(plain("RGB").quantize()),
        encoded(plain("RGBA")),
        encoded(plain("CMYK"), "TIFF"),
        encoded(plain("RGB"), "BMP"),
        encoded(plain("RGB"), "GIF", save_all=True, append_images=[Image.new("RGB", (6, 4))]),
    ],
    ids=["rgb", "palette", "rgba", "cmyk", "bmp", "animated"],
)
def test_every_kind_becomes_rgb(raw):
    """The colour survives; an animation gives its first frame."""
    picture = read_picture(raw)
    assert (picture.mode, picture.size) == ("RGB", (6, 4))
    assert np.abs(np.asarray(picture).astype(int) - RED).max() <= 3


def test_grey_and_deep_pixels():
    """Grey is repeated; 16-bit and float pixels are scaled to the range of 8 bits."""
    assert np.asarray(read_picture(encoded(plain("L")))).std(axis=2).max() == 0
    deep = Image.fromarray(np.array([[0, 32768], [49152, 65535]], dtype=np.uint16))
    values = np.asarray(read_picture(encoded(deep)))[..., 0]
    assert values.tolist() == [[0, 128], [191, 255]]
    floats = Image.fromarray(np.array([[0.0, 0.5], [1.0, 0.0]], dtype=np.float32))
    assert np.asarray(read_picture(encoded(floats, "TIFF")))[..., 0].tolist() == [
        [0, 128],
        [255, 0],
    ]


def test_transparent_is_white_and_exif_turns():
    """What one sees in a viewer is what the model gets."""
    clear = Image.new("RGBA", (3, 3), (0, 0, 0, 0))
    assert np.asarray(read_picture(encoded(clear))).min() == 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    turned = encoded(plain("RGB"), "JPEG", exif=exif)
    assert read_picture(turned).size == (4, 6)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "is empty"),
        (b"not a picture at all", "not a picture"),
        (encoded(plain("RGB").resize((64, 64)))[:90], "cannot be decoded"),
    ],
    ids=["empty", "text", "truncated"],
)
def test_unreadable_files_are_named(tmp_path, raw, words):
    """One clear line with the name of the file."""
    path = tmp_path / "x.png"
    path.write_bytes(raw)
    with pytest.raises(UnreadableImageError, match=f"x.png.*{words}"):
        read_picture(path)
    with pytest.raises(UnreadableImageError, match="does not exist"):
        read_picture(tmp_path / "none.png")


def test_a_picture_that_would_fill_the_memory_is_refused(monkeypatch):
    """Pillow's limit holds, and no pixel is decoded before it is checked."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    large = encoded(Image.new("RGB", (7, 6)))
    refused = pytest.raises(UnreadableImageError, match=r"7 x 6 pixels.*scale it down")
    with refused, pytest.warns(Image.DecompressionBombWarning):
        read_picture(large)


def test_resizing_keeps_proportions_and_the_centre(tmp_path):
    """The shorter side fits; what is cut off is equal on both sides."""
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 255
    assert resize_and_crop(Image.fromarray(wide), 10).min() == 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert load_square(tmp_path / "wide.png", 5).shape == (5, 5, 3)


def grey(values, dtype):
    return Image.fromarray(np.array([values], dtype=dtype))


def row(raw):
    return np.asarray(read_picture(raw))[0, :, 0].tolist()


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (encoded(grey([0, 200, 255], np.uint16)), [0, 1, 1]),
        (encoded(grey([0, 65535], np.uint16), "TIFF"), [0, 255]),
        (encoded(grey([0, 200], np.int32), "TIFF"), [0, 200]),
        (encoded(grey([0, 51400], np.int32), "TIFF"), [0, 200]),
        (encoded(grey([0, 0.2], np.float32), "TIFF"), [0, 51]),
        (encoded(grey([0, 200], np.float32), "TIFF"), [0, 200]),
    ],
    ids=["dark 16 bits", "16 bits", "small ints", "large ints", "0..1", "0..255"],
)
def test_ranges_of_deep_pixels(raw, expected):
    """Sixteen bits are sixteen bits, also where all of them are dark."""
    assert row(raw) == expected


@pytest.mark.parametrize(
    ("values", "dtype", "words"),
    [
        ([0, np.nan, np.nan], np.float32, "2 pixels that are NaN"),
        ([0, np.inf], np.float32, "1 pixels that are NaN or infinite"),
        ([-1, 1], np.float32, "from -1 to 1; they must lie between 0 and 1 or 255"),
        ([0, 1000], np.float32, "from 0 to 1000"),
        ([-5, 5], np.int32, "from -5 to 5; they must lie between 0 and 255 or 65535"),
        ([0, 70000], np.int32, "from 0 to 70000"),
    ],
)
def test_pixels_out_of_range_are_refused(values, dtype, words):
    """Nothing is clipped or made zero in silence."""
    with pytest.raises(UnreadableImageError, match=f"a picture has .*{words}"):
        read_picture(encoded(grey(values, dtype), "TIFF"))


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_a_transparent_colour_is_white(mode):
    """A PNG may call one colour transparent without having an alpha channel."""
    picture = Image.new(mode, (2, 2), 0)
    raw = encoded(picture, transparency=(0, 0, 0) if mode == "RGB" else 0)
    assert np.asarray(read_picture(raw)).min() == 255


def test_what_is_no_file_is_refused(tmp_path):
    """A device, a FIFO and a folder are named, and nobody waits for them."""
    os.mkfifo(tmp_path / "pipe.png")
    for path, kind in (
        (tmp_path / "pipe.png", "no ordinary"),
        ("/dev/zero", "no ordinary"),
        (tmp_path, "a folder"),
    ):
        with pytest.raises(UnreadableImageError, match=f"must be a file, but .* is {kind}"):
            read_picture(path)
