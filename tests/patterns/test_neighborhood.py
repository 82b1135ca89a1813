"""Neighbourhoods beside windows counted one by one; beside NATTEN: tests/integrations."""

import itertools
import math
import random

import pytest
import torch

from foveal import patterns as P
from foveal.testing import assert_pattern

MOST = {1: 40, 2: 9, 3: 6}  # coordinates on an axis


def drawn(number):
    """(size, options) of a neighbourhood that NATTEN takes too."""
    draw = random.Random(number)
    size, kernel, dilation, stride = [], [], [], []
    for _ in range(dims := 1 + number % 3):
        size.append(draw.randint(3, MOST[dims]))
        # never all of the input
        kernel.append(draw.randint(2, size[-1] - (not kernel)))
        dilation.append(draw.randint(1, size[-1] // kernel[-1]))
        stride.append(draw.randint(1, kernel[-1]))
    causal = tuple(draw.random() < 0.4 for _ in size)
    names = ("kernel_size", "dilation", "stride")
    options = dict(zip(names, map(tuple, (kernel, dilation, stride)), strict=True))
    return tuple(size), options | {"causal": causal}


def window(at, side, kernel, dilation, stride, first, ends, slides):
    """Coordinates that a coordinate reads on an axis, written down one by one."""
    own = [i for i in range(side) if i % dilation == at % dilation]
    place = own.index(at)
    group = [
        i
        for i in range(-stride, len(own) + stride)
        if (i - first) // stride == (place - first) // stride
    ]
    leader = group[-1] if ends else group[stride // 2]
    if slides:
        leader = min(leader, len(own) - 1)
    places = [leader - (kernel - 1 if ends else kernel // 2) + i for i in range(kernel)]
    if slides and not ends:
        while places[-1] >= len(own):
            places = [i - 1 for i in places]
        while places[0] < 0:
            places = [i + 1 for i in places]
    return {own[i] for i in places if 0 <= i < len(own) and not (ends and i > place)}


@pytest.mark.parametrize("border", ["clip", "shift"])
def test_windows_counted_one_by_one(border):
    """Strides that begin late, residue classes and even kernels; every view agrees with them."""
    for number in range(24):
        size, options = drawn(number)
        draw = random.Random(number)
        shift = tuple(draw.randrange(s) for s in options["stride"])
        pattern = P.Neighborhood(size, border=border, shift=shift, **options)
        lines = []
        for axis, side in enumerate(size):
            rule = [options[name][axis] for name in ("kernel_size", "dilation", "stride")]
            rest = (shift[axis], options["causal"][axis], border == "shift")
            lines.append([window(at, side, *rule, *rest) for at in range(side)])
        places = list(itertools.product(*map(range, size)))
        mask = torch.tensor(
            [
                [all(k[a] in lines[a][q[a]] for a in range(len(size))) for k in places]
                for q in places
            ]
        )
        assert pattern.mask(len(places)).equal(mask), pattern
        assert_pattern(pattern, len(places) - number % 2)


def test_swin_windows_are_blocks():
    """stride = kernel: windows that do not overlap; shifted, their borders are."""
    size, kernel, shift = (4, 9, 10), (2, 4, 5), (1, 2, 3)
    windows = P.Neighborhood(size, kernel, stride=kernel, shift=shift)
    blocks = P.Blocks(kernel, size=size, shift=shift)
    assert windows.mask(360).equal(blocks.mask(360))
    # as Swin makes them: rolled, cut into windows, those that meet round the corner kept apart
    rolled = torch.arange(16).view(4, 4).roll((-1, -1), (0, 1)).view(2, 2, 2, 2).transpose(1, 2)
    areas = torch.tensor([0, 1, 1, 2])[:, None] * 3 + torch.tensor([0, 1, 1, 2])
    mask = torch.zeros(16, 16, dtype=torch.bool)
    for tokens in rolled.reshape(4, 4).tolist():
        for q, k in itertools.product(tokens, tokens):
            mask[q, k] = areas.flatten()[q] == areas.flatten()[k]
    assert P.Neighborhood(4, 2, stride=2, shift=1).mask(16).equal(mask)


@pytest.mark.parametrize("size", [(40,), (12, 20), (6, 8, 8)])
def test_blocks_that_share_a_window_waste_nothing(size):
    """Tiles are blocks that share their keys: no pair is visited that is not read."""
    length = math.prod(size)
    pattern = P.Neighborhood(size, 4, stride=4)
    assert pattern.tiles(length).visited == pattern.num_pairs(length)
    wide = P.Neighborhood(size, 4, stride=2, border="shift")
    assert wide.num_pairs(length) == length * 4 ** len(size)


def test_only_what_is_causal_decodes():
    """Causal in time only reads later pixels of the frame, unless it reads none of its frame."""
    size, time = (3, 4, 5), (True, False, False)
    pattern = P.Neighborhood(size, 3, causal=time)
    assert not pattern.is_causal
    with pytest.raises(ValueError, match="causal"):
        pattern.reads(5)
    alone = P.Neighborhood(size, (2, 1, 1), causal=time)
    assert alone.is_causal
    assert alone.reads(27).tolist() == [7, 27]
    every = P.Neighborhood(size, 3, causal=(True,) * 3)
    assert every.is_causal
    assert every.mask(60).equal(P.Neighborhood(size, 3, causal="corner").mask(60))
