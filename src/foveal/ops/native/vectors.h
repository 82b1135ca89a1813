// Vectors of floats by the compiler's own extension, so that one source serves every width.

#ifndef FOVEAL_VECTORS_H
#define FOVEAL_VECTORS_H

#include <cstdint>
#include <cstring>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#define INLINE inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))  // compiled once, however often it is used

template <int W>
struct Vec {
    typedef float F __attribute__((vector_size(W * 4)));
    typedef int32_t I __attribute__((vector_size(W * 4)));
    typedef uint32_t U __attribute__((vector_size(W * 4)));

    template <class T>
    static INLINE T load(const void* from) {
        T x;
        memcpy(&x, from, sizeof x);
        return x;
    }
    template <class T>
    static INLINE void store(void* to, T x) {
        memcpy(to, &x, sizeof x);
    }
    // x - 0 is x for every x, so the compiler reduces it to a broadcast; x + 0 it must compute
    static INLINE F all(float x) { return x - F{}; }
    static INLINE U all(uint32_t x) { return x - U{}; }
    static INLINE F larger(F a, F b) { return a > b ? a : b; }

    static INLINE bool any(I x) {
        uint64_t parts[W / 2], found = 0;
        memcpy(parts, &x, sizeof x);
        for (uint64_t part : parts) found |= part;
        return found;
    }

    // Which lanes have their bit set: all ones or zero.
    static INLINE I lanes(uint32_t bits) {
        uint32_t one[W];
        for (int i = 0; i < W; ++i) one[i] = 1u << i;
        return (I)((all(bits) & load<U>(one)) != 0);
    }

    // 2^x for x <= 127, exactly 0 below -126; relative error 1e-7. NaN stays NaN.
    static INLINE F exp2(F x) {
        const F low = all(-127.0f), magic = all(12582912.0f);  // 1.5 * 2^23 rounds to integers
        x = x < low ? low : x;
        F shifted = x + magic;
        F f = x - (shifted - magic);
        I n = (I)shifted - (I)magic;
        F p = all(1.3276472e-3f);  // least relative error on [-1/2, 1/2]
        p = p * f + 9.6755419e-3f;
        p = p * f + 5.5507131e-2f;
        p = p * f + 2.4022120e-1f;
        p = p * f + 6.9314694e-1f;
        p = p * f + 1.0000001f;
        return p * (F)((n + 127) << 23);
    }

    // Relative error 3e-7, and 6e-8 as a rule; 1 from 9 on. NaN stays NaN.
    static INLINE F tanh(F x) {
        const F most = all(9.0f);
        x = x > most ? most : x;
        x = x < -most ? -most : x;
        const F u = x * x;
        F p = all(1.3353220e-8f), q = all(7.7759706e-7f);  // least relative error on [-9, 9]
        p = p * u + 2.0608055e-5f, q = q * u + 3.2855338e-4f;
        p = p * u + 3.4955271e-3f, q = q * u + 2.5876753e-2f;
        p = p * u + 1.3380975e-1f, q = q * u + 4.6714291e-1f;
        p = p * u + 1.0f, q = q * u + 1.0f;
        return x * p / q;
    }
};

// Rows a, b, c, d of four elements -> their columns.
INLINE void transpose(Vec<4>::U& a, Vec<4>::U& b, Vec<4>::U& c, Vec<4>::U& d) {
    typedef Vec<4>::U U;
#if defined(__clang__) || __GNUC__ >= 12
#define FOVEAL_SHUFFLE(x, y, i, j, k, l) __builtin_shufflevector(x, y, i, j, k, l)
#else
#define FOVEAL_SHUFFLE(x, y, i, j, k, l) __builtin_shuffle(x, y, U{i, j, k, l})
#endif
    U ab = FOVEAL_SHUFFLE(a, b, 0, 4, 1, 5), ab2 = FOVEAL_SHUFFLE(a, b, 2, 6, 3, 7);
    U cd = FOVEAL_SHUFFLE(c, d, 0, 4, 1, 5), cd2 = FOVEAL_SHUFFLE(c, d, 2, 6, 3, 7);
    a = FOVEAL_SHUFFLE(ab, cd, 0, 1, 4, 5), b = FOVEAL_SHUFFLE(ab, cd, 2, 3, 6, 7);
    c = FOVEAL_SHUFFLE(ab2, cd2, 0, 1, 4, 5), d = FOVEAL_SHUFFLE(ab2, cd2, 2, 3, 6, 7);
}

// -- arithmetic of the products: how one broadcast element meets a vector -----------------------

// float32: an element is a float.
template <int W>
struct Float {
    static constexpr int width = W, pack = 1;
    typedef Vec<W> V;
    typedef float Element;
    typedef typename V::F Operand;
    static INLINE Operand all(Element x) { return V::all(x); }
    static INLINE typename V::F fma(Operand a, Operand b, typename V::F c) { return a * b + c; }
};

#ifdef __AVX512BF16__
// bfloat16: an element is a pair of neighbours along the summed dimension.
struct Pairs {
    static constexpr int width = 16, pack = 2;
    typedef Vec<16> V;
    typedef uint32_t Element;
    typedef V::U Operand;
    static INLINE Operand all(Element x) { return V::all(x); }
    static INLINE V::F fma(Operand a, Operand b, V::F c) {
        return (V::F)_mm512_dpbf16_ps((__m512)c, (__m512bh)a, (__m512bh)b);
    }
};
#endif

// -- bfloat16 as 16 bits -------------------------------------------------------------------------

INLINE float widen(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}
INLINE float widen(float x) { return x; }

INLINE uint16_t narrow(float x) {  // to nearest even; NaN stays NaN
    uint32_t bits;
    memcpy(&bits, &x, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)(x != x ? 0x7fc0 : rounded);
}
// Whether a row holds neither infinity nor NaN.
inline bool finite(const float* row, long size) {
    uint32_t most = 0;
    for (long d = 0; d < size; ++d) {
        uint32_t bits;
        memcpy(&bits, row + d, 4);
        bits &= 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    return most < 0x7f800000u;
}
inline bool finite(const uint16_t* row, long size) {
    uint16_t most = 0;
    for (long d = 0; d < size; ++d) {
        const uint16_t bits = row[d] & 0x7fffu;
        most = bits > most ? bits : most;
    }
    return most < 0x7f80u;
}

// to += weight * row
template <class In>
void add_row(float* to, float weight, const In* row, long size) {
    for (long d = 0; d < size; ++d) to[d] += weight * widen(row[d]);
}

INLINE void put(uint16_t* to, float x) { *to = narrow(x); }
INLINE void put(float* to, float x) { *to = x; }

#endif
