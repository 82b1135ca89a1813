"""What stands in for the instructions of AVX512_BF16 computes what Intel says that they do."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from fractions import Fraction

import numpy as np
import pytest
from emulated.kernels import LOWERED

from foveal.common.processor import runnable_classes

pytestmark = pytest.mark.skipif(
    "avx2" not in runnable_classes() or shutil.which("c++") is None,
    reason="it is compiled for AVX2",
)

SOURCE = """
#include <immintrin.h>

extern "C" void products(float* sums, const uint16_t* a, const uint16_t* b) {
    __m512bh x, y;
    memcpy(&x, a, sizeof x), memcpy(&y, b, sizeof y);
    const __m512 found = _mm512_dpbf16_ps(_mm512_loadu_ps(sums), x, y);
    memcpy(sums, &found, sizeof found);
}

extern "C" void narrowed(const float* from, uint16_t* to) {
    const __m256bh found = _mm512_cvtneps_pbh(_mm512_loadu_ps(from));
    memcpy(to, &found, sizeof found);
}
"""
LEAST = Fraction(2) ** -126  # below it numbers are denormal


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    (folder / "pairs.cpp").write_text(SOURCE)
    command = ["c++", "-shared", "-fPIC", *LOWERED["avx512+bf16"], folder / "pairs.cpp"]
    subprocess.run([*command, "-o", folder / "pairs.so"], check=True)
    return ctypes.CDLL(str(folder / "pairs.so"))


def bits(x):
    return np.asarray(x, np.float32).view(np.uint32)


def floats(x):
    return np.asarray(x, np.uint32).view(np.float32)


def products(library, sums, a, b):
    """sums (16,) float32; a, b (16, 2) float32 of which the upper 16 bits count."""
    sums = np.array(sums, np.float32)
    a, b = ((bits(x) >> 16).astype(np.uint16, order="C") for x in (a, b))
    library.products(*(x.ctypes.data_as(ctypes.c_void_p) for x in (sums, a, b)))
    return sums


def narrowed(library, x):
    x, found = np.array(x, np.float32), np.empty(16, np.uint16)
    library.narrowed(*(y.ctypes.data_as(ctypes.c_void_p) for y in (x, found)))
    return found


def exact(x):
    """A float as a Fraction; denormals are zeros."""
    found = Fraction(float(x))
    return Fraction(0) if abs(found) < LEAST else found


def to_float32(x):
    """The nearest float32 of a Fraction, even where two are as near; denormals are zeros."""
    if abs(x) < LEAST:
        return 0.0
    power = max(abs(x).numerator.bit_length() - abs(x).denominator.bit_length() - 1, -126)
    if abs(x) >= Fraction(2) ** (power + 1):
        power += 1
    unit = Fraction(2) ** (power - 23)
    return float(round(x / unit) * unit)  # round() of a Fraction is to even


def drawn(shape, powers, seed):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=shape) * 2.0 ** generator.integers(*powers, size=shape)
    return x.astype(np.float32)


@pytest.mark.parametrize("powers", [(-2, 3), (-12, 12), (-66, -58), (-132, -122)])
def test_two_sums_are_rounded_one_by_one(library, powers):
    """The upper product is added first; nothing denormal is read or written."""
    for seed in range(8):
        a, b = (floats(bits(drawn((16, 2), powers, [seed, i])) & 0xFFFF0000) for i in (0, 1))
        sums = drawn(16, (2 * powers[0], 2 * powers[1]), [seed, 2])
        wanted = []
        for total, x, y in zip(sums, a, b, strict=True):
            for half in (1, 0):
                total = to_float32(exact(x[half]) * exact(y[half]) + exact(total))
            wanted.append(total)
        assert products(library, sums, a, b).tolist() == wanted


def test_their_order_is_seen(library):
    """1e30 * 1 taken away in the upper half leaves what the lower half then adds."""
    a = np.tile(np.float32([1.0, -1.0]), (16, 1))
    b = np.tile(floats([bits(2.0), bits(2.0**100)]), (16, 1))
    assert products(library, [2.0**100] * 16, a, b).tolist() == [2.0] * 16
    assert products(library, [2.0**100] * 16, a[:, ::-1], b[:, ::-1]).tolist() == [0.0] * 16


def test_infinity_and_nan_pass(library):
    """As they do in arithmetic: inf - inf and 0 * inf are NaN."""
    a = np.zeros((16, 2), np.float32)
    b = np.zeros((16, 2), np.float32)
    a[:4, 1] = b[:4, 1] = [np.inf, -np.inf, np.nan, 1.0]
    a[4, 0], sums = np.inf, np.zeros(16, np.float32)
    sums[5:7], a[6], b[6] = np.inf, [0, -np.inf], [0, 1]
    got = products(library, sums, a, b)
    assert np.array_equal(got[:4], np.float32([np.inf, np.inf, np.nan, 1.0]), equal_nan=True)
    assert np.isnan(got[[4, 6]]).all()
    assert got[5] == np.inf


def test_rounding_to_bfloat16(library):
    """To nearest even; denormals are signed zeros, NaN stays NaN and large numbers overflow."""
    ties = [0x3F808000, 0x3F818000, 0xBF808000, 0xBF818000, 0x3F808001, 0x3F807FFF]
    special = [0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7F800001, 0xFFC00000]
    small = [0x00000001, 0x807FFFFF, 0x00800000, 0x80000000, 0]
    wanted = [0x3F80, 0x3F82, 0xBF80, 0xBF82, 0x3F81, 0x3F80]
    wanted += [0x7F80, 0x7F80, 0xFF80, 0x7FC0, 0xFFC0, 0, 0x8000, 0x0080, 0x8000, 0]
    assert narrowed(library, floats([*ties, *special, *small])).tolist() == wanted
