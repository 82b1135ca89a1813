// The two matrix products that everything is made of. Six rows by two or four vectors of the
// result stay in registers while one dimension is summed; one operand is read row by row, through
// pointers. A is broadcast element by element, B is read as vectors.

#ifndef FOVEAL_PRODUCTS_H
#define FOVEAL_PRODUCTS_H

#include "vectors.h"

#define UNROLL _Pragma("GCC unroll 8")

// How the products are cut for the registers and caches of an instruction set.
template <int W>
struct Blocking {
    // vectors of a block: sixteen registers hold 6 x 2 results, thirty-two hold 6 x 4
#ifdef __aarch64__
    static constexpr int panel = 4;
#else
    static constexpr int panel = W == 16 ? 4 : 2;
#endif
    // rows that are left over go by four where 2 x panel sums are too few to hide the latency
    static constexpr bool fours = panel == 2;
    // keys and values are copied side by side, and the next ones fetched, while products run
    static constexpr bool stages = W != 16;
};

// C[r] = alpha A[r] B, or added to it: A by rows a[r][k], B[k] = b + k * ldb, k in [first, last).
template <class P, int R, int N>
NOINLINE void by_rows_block(const typename P::Element* const* a, long first, long last,
                          const typename P::Element* b, long ldb, float* const* c, long column,
                          float alpha, bool add) {
    typedef typename P::V V;
    typedef typename V::F F;
    const typename P::Element* row[R];
    UNROLL for (int r = 0; r < R; ++r) row[r] = a[r];
    F sum[R][N] = {};
    b += first * ldb + column;
    for (long k = first; k < last; ++k, b += ldb) {
        typename P::Operand vector[N];
        UNROLL for (int n = 0; n < N; ++n)
            vector[n] = V::template load<typename P::Operand>(b + n * P::width);
        UNROLL for (int r = 0; r < R; ++r) {
            typename P::Operand x = P::all(row[r][k]);
            UNROLL for (int n = 0; n < N; ++n) sum[r][n] = P::fma(x, vector[n], sum[r][n]);
        }
    }
    UNROLL for (int r = 0; r < R; ++r) UNROLL for (int n = 0; n < N; ++n) {
        float* to = c[r] + column + n * P::width;
        F x = sum[r][n] * alpha;
        V::store(to, add ? x + V::template load<F>(to) : x);
    }
}

// C[r] += A B: A by columns A[r][k] = a[k * lda + r], B by rows b[k], k in [first, last).
template <class P, int R, int N>
NOINLINE void by_columns_block(const typename P::Element* a, long lda,
                             const typename P::Element* const* b, long first, long last,
                             float* c, long ldc, long column) {
    typedef typename P::V V;
    typedef typename V::F F;
    F sum[R][N];
    UNROLL for (int r = 0; r < R; ++r) UNROLL for (int n = 0; n < N; ++n)
        sum[r][n] = V::template load<F>(c + r * ldc + column + n * P::width);
    a += first * lda;
    for (long k = first; k < last; ++k, a += lda) {
        const typename P::Element* row = b[k] + column;
        typename P::Operand vector[N];
        UNROLL for (int n = 0; n < N; ++n)
            vector[n] = V::template load<typename P::Operand>(row + n * P::width);
        UNROLL for (int r = 0; r < R; ++r) {
            typename P::Operand x = P::all(a[r]);
            UNROLL for (int n = 0; n < N; ++n) sum[r][n] = P::fma(x, vector[n], sum[r][n]);
        }
    }
    UNROLL for (int r = 0; r < R; ++r) UNROLL for (int n = 0; n < N; ++n)
        V::store(c + r * ldc + column + n * P::width, sum[r][n]);
}

// Calls `block.template run<R, N>(row, column)` until rows [0, rows) and vectors [first, last)
// of the result are covered.
template <class P, int R, class Block>
INLINE void cover_vectors(long row, long first, long last, Block& block) {
    constexpr int most = Blocking<P::width>::panel;
    while (first < last) {
        long left = last - first, panels = (left + most - 1) / most;
        long n = (left + panels - 1) / panels;  // 5 vectors are 3 + 2, not 4 + 1
        if (n == 1) block.template run<R, 1>(row, first * P::width);
        if (n == 2) block.template run<R, 2>(row, first * P::width);
        if constexpr (most == 4) {
            if (n == 3) block.template run<R, 3>(row, first * P::width);
            if (n == 4) block.template run<R, 4>(row, first * P::width);
        }
        first += n;
    }
}

template <class P>
struct ByRows {
    const typename P::Element* const* a;
    long first, last;
    const typename P::Element* b;
    long ldb;
    float* const* c;
    float alpha;
    bool add;

    template <int R, int N>
    INLINE void run(long row, long column) {
        by_rows_block<P, R, N>(a + row, first, last, b, ldb, c + row, column, alpha, add);
    }
};

template <class P>
struct ByColumns {
    const typename P::Element* a;
    long lda;
    const typename P::Element* const* b;
    long first, last;
    float* c;
    long ldc;

    template <int R, int N>
    INLINE void run(long row, long column) {
        by_columns_block<P, R, N>(a + row, lda, b, first, last, c + row * ldc, ldc, column);
    }
};

constexpr int ROWS = 6;

// `rows` <= ROWS rows of the result at `row`, vectors [first, last).
template <class P, class Block>
INLINE void cover(long row, long rows, long first, long last, Block& block) {
    if (rows == 6) return cover_vectors<P, 6>(row, first, last, block);
    if constexpr (Blocking<P::width>::fours)
        for (; rows >= 4; row += 4, rows -= 4) cover_vectors<P, 4>(row, first, last, block);
    for (; rows >= 2; row += 2, rows -= 2) cover_vectors<P, 2>(row, first, last, block);
    if (rows) cover_vectors<P, 1>(row, first, last, block);
}

#endif
