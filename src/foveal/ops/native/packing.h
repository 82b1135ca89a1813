// Bringing tokens into the forms that the products read: rows in place where the dtype and the
// size allow, else a small copy that stays in cache.

#ifndef FOVEAL_PACKING_H
#define FOVEAL_PACKING_H

#include <type_traits>

#include "products.h"

constexpr long QUERIES = 64;  // in a tile: the bits of a mask word
constexpr long KEYS = 64;     // in a block of keys

template <class T>
INLINE uint32_t two(T a, T b) {
    if constexpr (sizeof(T) == 2) return (uint32_t)a | (uint32_t)b << 16;
    return 0;
}

// Element d of a token's features: a float, or a pair of which the second may lie beyond dim.
template <class P, class In>
INLINE typename P::Element element(const In* from, long d, long dim) {
    if constexpr (P::pack == 1) return widen(from[d]);
    return two(from[P::pack * d], P::pack * d + 1 < dim ? from[P::pack * d + 1] : In(0));
}

// Four whole elements in a row.
template <class P, class In>
INLINE Vec<4>::U four(const In* from, long d) {
    if constexpr (P::pack == 1 && sizeof(In) == 2) {
        float x[4] = {widen(from[d]), widen(from[d + 1]), widen(from[d + 2]), widen(from[d + 3])};
        return Vec<4>::load<Vec<4>::U>(x);
    } else {
        return Vec<4>::load<Vec<4>::U>(from + P::pack * d);
    }
}

// Tokens with a feature a row: out[d / pack][q], `lanes` wide, zero beyond n. The operand whose
// vectors run over the queries.
template <class P, class In>
void pack_features(const In* base, long stride, const long* at, long n, long dim, long lanes,
                   typename P::Element* out) {
    typedef typename P::Element E;
    const long size = (dim + P::pack - 1) / P::pack, whole = dim / P::pack / 4 * 4;
    for (long q = 0; q < lanes; q += 4) {
        const In* from[4];
        for (long i = 0; i < 4; ++i) from[i] = base + at[q + i < n ? q + i : 0] * stride;
        for (long d = 0; d < whole; d += 4) {
            Vec<4>::U row[4];
            UNROLL for (int i = 0; i < 4; ++i) row[i] = four<P>(from[i], d);
            transpose(row[0], row[1], row[2], row[3]);
            UNROLL for (int i = 0; i < 4; ++i) Vec<4>::store(out + (d + i) * lanes + q, row[i]);
        }
        for (long d = whole; d < size; ++d)
            for (long i = 0; i < 4; ++i) out[d * lanes + q + i] = element<P>(from[i], d, dim);
    }
    for (long d = 0; n < lanes && d < size; ++d)
        for (long q = n; q < lanes; ++q) out[d * lanes + q] = E(0);
}

// Tokens a row: out[i / pack][padded], zero beyond dim. The operand whose vectors run over the
// features; a pair of neighbouring tokens is one row where elements are pairs.
template <class P, class In>
void pack_tokens(const In* base, long stride, const long* at, long n, long dim, long padded,
                 typename P::Element* out) {
    if constexpr (P::pack == 1) {
        for (long i = 0; i < n; ++i, out += padded) {
            const In* from = base + at[i] * stride;
            for (long d = 0; d < dim; ++d) out[d] = widen(from[d]);
            for (long d = dim; d < padded; ++d) out[d] = 0;
        }
    } else {
        for (long i = 0; i < n; i += 2, out += padded) {
            const In* a = base + at[i] * stride;
            if (i + 1 < n) {
                const In* b = base + at[i + 1] * stride;
                for (long d = 0; d < dim; ++d) out[d] = two(a[d], b[d]);
            } else {
                for (long d = 0; d < dim; ++d) out[d] = two(a[d], In(0));
            }
            for (long d = dim; d < padded; ++d) out[d] = 0;
        }
    }
}

// A block of keys or values as rows to broadcast from and as vectors.
template <class In, class P>
struct Tokens {
    typedef typename P::Element E;
    const E* row[KEYS];
    const E* vector[KEYS];
    E* copy;  // KEYS x padded
    const E* zeros;  // padded
    E* rows;  // KEYS x padded, used where pairs do not fit into a row

    void read(const In* base, long stride, const long* at, long n, long dim, long padded,
              bool want_vectors) {
        constexpr bool same = std::is_same<In, E>::value;
        if constexpr (same && Blocking<P::width>::stages) {
            if (want_vectors && (stride != dim || dim != padded)) {
                copy_vectors(base, stride, at, n, dim, padded);
                for (long j = 0; j < n; ++j) row[j] = vector[j];
                return;
            }
        }
        if constexpr (same) {
            for (long j = 0; j < n; ++j) row[j] = base + at[j] * stride;
            if (dim == padded) {
                for (long j = 0; j < n; ++j) vector[j] = row[j];
                return;
            }
        } else if constexpr (P::pack == 2) {
            if (dim % 2) return read_odd(base, stride, at, n, dim, padded, want_vectors);
            for (long j = 0; j < n; ++j) row[j] = (const E*)(base + at[j] * stride);
        }
        if (!want_vectors && (same || P::pack == 2)) return;
        copy_vectors(base, stride, at, n, dim, padded);
        if (!same && P::pack == 1)
            for (long j = 0; j < n; ++j) row[j] = vector[j];
    }

    // Makes token j zeros among the vectors.
    void clear(long j, long padded) {
        if constexpr (P::pack == 1) {
            vector[j] = zeros;
        } else {  // pairs always lie in the copy: the lower half is the even token
            E* pair = copy + j / 2 * padded;
            for (long d = 0; d < padded; ++d) pair[d] &= j % 2 ? E(0xffff) : E(0xffff0000u);
        }
    }

    void copy_vectors(const In* base, long stride, const long* at, long n, long dim,
                      long padded) {
        pack_tokens<P>(base, stride, at, n, dim, padded, copy);
        for (long j = 0; j < (n + P::pack - 1) / P::pack; ++j) vector[j] = copy + j * padded;
    }

    void read_odd(const In* base, long stride, const long* at, long n, long dim, long padded,
                  bool want_vectors) {
        for (long j = 0; j < n; ++j) {
            const In* from = base + at[j] * stride;
            E* to = rows + j * padded;
            for (long d = 0; 2 * d < dim; ++d) to[d] = element<P>(from, d, dim);
            row[j] = to;
        }
        if (want_vectors) copy_vectors(base, stride, at, n, dim, padded);
    }
};

// Weights (n, lanes) as pairs of neighbouring keys: out (ceil(n / 2), lanes).
template <class E>
void pack_pairs(const float* from, long n, long lanes, E* out) {
    typedef Vec<16> V;
    typedef V::U U;
    for (long j = 0; j < n; j += 2, from += 2 * lanes, out += lanes) {
        for (long i = 0; i < lanes; i += 16) {
            U even = V::load<U>(from + i), odd = j + 1 < n ? V::load<U>(from + lanes + i) : U{};
            even = (even + 0x7fff + (even >> 16 & 1)) >> 16;
            odd = (odd + 0x7fff + (odd >> 16 & 1)) & 0xffff0000u;
            V::store(out + i, even | odd);
        }
    }
}

#ifdef __AVX512BF16__
// Weights (n, lanes) as pairs of neighbouring queries: out (n, lanes / 2).
inline void pack_rows(const float* from, long n, long lanes, uint32_t* out) {
    for (long i = 0; i < n * lanes; i += 16) {
        __m256bh x = _mm512_cvtneps_pbh(_mm512_loadu_ps(from + i));
        memcpy(out + i / 2, &x, sizeof x);
    }
}
#endif

#endif
