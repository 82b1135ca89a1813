"""data.transform: somebody else's function on pictures, found, fed, checked and repeatable."""

import random
import sys
import types

import numpy as np
import pytest
import torch

from foveal.data import Stream
from foveal.data.captions import CaptionedPictures, CaptionedSet, Pictures
from foveal.data.images import AugmentedImages, ImageDataConfig, ImageSet
from foveal.data.pixels import PixelValues
from foveal.data.transform import Transform

PLAIN = {"crop": 0, "flip": False}


@pytest.fixture
def own(monkeypatch):
    """A module of functions; those that a test adds can be named in settings."""
    module = types.ModuleType("own_pictures")
    module.same = lambda picture: picture
    module.dark = lambda picture: picture // 2
    module.half = lambda picture: picture / 510
    module.noisy = lambda picture: (
        picture.float() / 255 * torch.rand(()) * random.random() * np.random.rand()  # noqa: NPY002
    )
    monkeypatch.setitem(sys.modules, "own_pictures", module)
    return module


def pictures(count=12, size=5):
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def images(count=12):
    return ImageSet.from_pixels("some", pictures(count), np.arange(count) % 3, ["a", "b", "c"])


def stream(transform, batch=4, rank=0, world=1, seed=3, **options):
    config = ImageDataConfig(transform=transform, **{**PLAIN, **options})
    return Stream(AugmentedImages(images(), config), batch, seed, rank, world)


def test_it_gets_bytes_of_one_picture_and_may_change_them(own):
    """uint8 (3, size, size) each, its own memory; the data stay as they are."""
    seen = []

    def function(picture):
        seen.append((picture.dtype, tuple(picture.shape), torch.is_grad_enabled()))
        return picture.zero_()

    own.function = function
    found = stream("own_pictures:function")
    first, _ = found.next()
    assert seen == [(torch.uint8, (3, 5, 5), False)] * 4
    assert (first == -2).all()
    whole = found.source.images.read(torch.arange(12)).permute(0, 2, 3, 1)
    assert torch.equal(whole, torch.from_numpy(pictures()))


def test_same_pictures_train_as_without_it(own):
    """A function that changes nothing changes no bit, whatever else is varied."""
    more = {"crop": 2, "flip": True, "rand_augment": 0.5, "mixup": 0.4}
    with_it, without = stream("own_pictures:same", **more), stream("", **more)
    for _ in range(4):
        for a, b in zip(with_it.next(), without.next(), strict=True):
            assert torch.equal(a, b)


def test_floats_and_bytes_are_the_same_pictures(own):
    """What gives floats from 0 to 1 need not go back to bytes."""
    whole, halves = stream("").next()[0], stream("own_pictures:half").next()[0]
    torch.testing.assert_close((halves + 2) * 2, whole + 2)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_random_numbers_belong_to_a_picture(own, world):
    """However many processes deal them, and whatever else draws, a picture is changed alike."""
    alone = stream("own_pictures:noisy", batch=6)
    wanted = torch.cat([alone.next()[0] for _ in range(4)])
    ranks = [stream("own_pictures:noisy", 6 // world, rank, world) for rank in range(world)]
    parts = []
    for _ in range(4):
        for one in ranks:
            random.seed(len(parts))
            torch.manual_seed(len(parts))
            parts.append(one.next()[0])
    assert torch.equal(torch.cat(parts), wanted)
    assert len({float(one.double().sum()) for one in wanted + 2}) == len(wanted)
    assert not torch.equal(stream("own_pictures:noisy", batch=6, seed=4).next()[0], wanted[:6])


def test_a_stream_goes_on_with_the_same_pictures(own):
    """After a checkpoint, what is drawn next is what would have been drawn."""
    first, second = stream("own_pictures:noisy"), stream("own_pictures:noisy")
    first.next()
    state = first.state_dict()
    wanted = first.next()[0]
    second.load_state_dict(state)
    assert torch.equal(second.next()[0], wanted)


def test_dropout_draws_what_it_would_have_drawn(own):
    """The generators of Python, NumPy and torch are left as they were, also by a failure."""

    def bad(picture):
        torch.rand(3)
        raise RuntimeError

    own.bad = bad
    for name in ("noisy", "bad"):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
        wanted = random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002
        random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
        try:
            stream(f"own_pictures:{name}").next()
        except ValueError:
            assert name == "bad"
        assert (random.random(), np.random.rand(), float(torch.rand(()))) == wanted  # noqa: NPY002


def test_other_generators_can_have_the_seed(own):
    """torch.initial_seed() is that of the picture: below 2 ** 32, another for each."""
    seeds = []
    own.seeded = lambda picture: seeds.append(torch.initial_seed()) or picture
    stream("own_pictures:seeded").next()
    assert len(set(seeds)) == 4
    assert max(seeds) < 2**32


def test_every_kind_of_pictures_has_it(own):
    """Pictures as values, for a VAE and for CLIP see the function, too."""
    pixels = torch.from_numpy(pictures()).permute(0, 3, 1, 2).contiguous()
    captioned = CaptionedSet("some", pixels, [["a"]] * 12)
    words = torch.zeros(12, 3, dtype=torch.long)

    def both(make):
        plain, dark = (Stream(make(name), 4, 0).next() for name in ("", "own_pictures:dark"))
        return (plain, dark) if isinstance(plain, torch.Tensor) else (plain[1], dark[1])

    plain, dark = both(lambda name: PixelValues(images(), False, name))
    assert torch.equal(dark, plain // 2)
    assert dark.dtype == plain.dtype
    for plain, dark in (
        both(lambda name: Pictures(captioned, False, name)),
        both(lambda name: CaptionedPictures(captioned, words, transform=name)),
    ):
        assert torch.equal((dark * 255).round(), (plain * 255).round() // 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("augment", "must be 'package.module:function', got 'augment'"),
        (":augment", "must be 'package.module:function'"),
        ("own_pictures:", "must be 'package.module:function'"),
        ("no_such_module:f", "there is no module 'no_such_module'.*PYTHONPATH"),
        ("own_pictures.deep:f", "there is no module 'own_pictures.deep'"),
        ("json.no:f", "there is no module 'json.no'"),
        ("own_pictures:drak", "has no 'drak'; did you mean 'dark'"),
        ("own_pictures:dark.more", "has no 'more'"),
        ("fractions:Fraction", "names a class; name a function"),
        ("own_pictures:__name__", "must be a function, got str"),
        ("own pictures:f", "there is no module 'own pictures'"),
        ("..:f", "fails when it is imported: TypeError|there is no module"),
    ],
)
def test_what_cannot_be_found_is_named(own, name, message):
    """One line with the setting, what it says, and what it may have meant."""
    with pytest.raises(ValueError, match=message) as caught:
        Transform(name)
    assert "data.transform" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError"),
        ("import not_there_either", "No module named 'not_there_either'"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
    ],
)
def test_a_module_that_fails_is_named(tmp_path, monkeypatch, text, message):
    """With its error, not as a module that is not there."""
    (tmp_path / "failing_pictures.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=f"'failing_pictures' fails when .*{message}"):
        Transform("failing_pictures:f")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda picture: picture.numpy(), "got numpy.ndarray"),
        (lambda picture: None, "got builtins.NoneType"),
        (lambda picture: picture[:, :4], r"got the shape \(3, 4, 5\)"),
        (lambda picture: picture[None], r"got the shape \(1, 3, 5, 5\)"),
        (lambda picture: picture.permute(1, 2, 0), r"got the shape \(5, 5, 3\)"),
        (lambda picture: picture.long(), "got torch.int64"),
        (lambda picture: picture.float(), "got floats from 0 to|got floats from [1-9]"),
        (lambda picture: picture / 255 - 0.5, "got floats from -0.4"),
        (lambda picture: picture / 255 * float("nan"), "got floats from nan to nan"),
        (lambda picture: picture / 0, "got floats from .* to (inf|nan)"),
        (lambda picture: picture["red"], "failed on a picture, uint8 .3, 5, 5.: "),
        (lambda: None, "failed on a picture.*TypeError"),
    ],
)
def test_what_gives_no_picture_is_named(own, function, message):
    """One line: what was to come back, and what came."""
    own.wrong = function
    with pytest.raises(ValueError, match=message) as caught:
        stream("own_pictures:wrong").next()
    assert "data.transform='own_pictures:wrong'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_transforms_of_torchvision(own):
    """v2 takes the pictures as they are."""
    v2 = pytest.importorskip("torchvision.transforms.v2")
    own.augment = v2.Compose([v2.RandomHorizontalFlip(), v2.ColorJitter(0.4), v2.RandomCrop(5, 2)])
    first, again = (stream("own_pictures:augment").next()[0] for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, stream("").next()[0])
