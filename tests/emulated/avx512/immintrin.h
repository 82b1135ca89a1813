// Stands in for the compiler's <immintrin.h> where a processor has no AVX-512: what the kernel
// asks of AVX512_BF16, lane by lane, as Intel's Software Developer's Manual defines VDPBF16PS and
// VCVTNEPS2BF16. Both round to nearest even, take denormals for zeros and never write one.

#ifndef EMULATED_IMMINTRIN_H
#define EMULATED_IMMINTRIN_H

#include <cstdint>
#include <cstring>

typedef float __m512 __attribute__((vector_size(64)));
typedef int16_t __m512bh __attribute__((vector_size(64)));
typedef int16_t __m256bh __attribute__((vector_size(32)));

namespace emulated {

inline float number(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

inline uint32_t bits(float x) {
    uint32_t found;
    memcpy(&found, &x, 4);
    return found;
}

inline float flushed(float x) {
    const uint32_t all = bits(x), exponent = all & 0x7f800000u;
    return number(exponent ? all : all & 0x80000000u);
}

// sum + a * b, rounded once
inline float fma(uint32_t a, uint32_t b, float sum) {
    return flushed(__builtin_fmaf(flushed(number(a)), flushed(number(b)), flushed(sum)));
}

inline uint16_t rounded(float x) {
    const uint32_t all = bits(flushed(x)), quiet = x != x ? 0x40u : 0u;
    const uint32_t bias = x - x == 0 ? 0x7fffu + (all >> 16 & 1) : 0u;  // of finite numbers alone
    return (uint16_t)((all + bias) >> 16 | quiet);
}

}  // namespace emulated

// Of each pair the upper halves are multiplied first.
inline __m512 _mm512_dpbf16_ps(__m512 sums, __m512bh a, __m512bh b) {
    uint32_t x[16], y[16];
    memcpy(x, &a, sizeof x), memcpy(y, &b, sizeof y);
    for (int i = 0; i < 16; ++i) {
        const float upper = emulated::fma(x[i] & 0xffff0000u, y[i] & 0xffff0000u, sums[i]);
        sums[i] = emulated::fma(x[i] << 16, y[i] << 16, upper);
    }
    return sums;
}

inline __m512 _mm512_loadu_ps(const void* from) {
    __m512 x;
    memcpy(&x, from, sizeof x);
    return x;
}

inline __m256bh _mm512_cvtneps_pbh(__m512 x) {
    uint16_t found[16];
    for (int i = 0; i < 16; ++i) found[i] = emulated::rounded(x[i]);
    __m256bh packed;
    memcpy(&packed, found, sizeof packed);
    return packed;
}

#endif
