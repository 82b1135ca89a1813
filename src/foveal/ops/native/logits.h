// What shapes the logits of a tile beside the product: a soft-cap, biases, masks, dropout.

#ifndef FOVEAL_LOGITS_H
#define FOVEAL_LOGITS_H

#include "tile.h"

template <class In, class P>
inline void Tile<In, P>::logits(long first, float* bend) {
    if (call.softcap > 0) {
        dots(k.row, q_features, dim, (float)(call.scale / call.softcap), scores);
        soft_cap(bend);
    } else {
        dots(k.row, q_features, dim, (float)call.scale * LOG2E, scores);
    }
    if (call.rows.data) add_window(first);
    if (call.bias.data) add_bias();
    if (call.table.data) add_table();
}

template <class In, class P>
inline void Tile<In, P>::start_table() {
    for (long i = 0; i < lanes; ++i) code[i] = call.table.query[query[i < n ? i : n - 1]];
    for (long i = 0; i < vectors; ++i) {
        consecutive[i] = true;
        for (long j = i * W + 1; j < n && j < (i + 1) * W; ++j)
            consecutive[i] = consecutive[i] && code[j] == code[j - 1] + 1;
    }
}

template <class In, class P>
inline void Tile<In, P>::add_table() {
    const float* base = call.table.data + head * call.table.head;
    for (long j = 0; j < keys; ++j) key_code[j] = call.table.key[key[j]];
    for (long i = 0; i < vectors; ++i) {
        float* s = scores + i * W;
        const int64_t* own = code + i * W;
        if (consecutive[i]) {
            const float* from = base + own[0];
            for (long j = 0; j < keys; ++j)
                V::store(s + j * lanes, V::template load<F>(s + j * lanes) +
                                            V::template load<F>(from - key_code[j]));
        } else {
            for (long j = 0; j < keys; ++j) {
                const float* from = base - key_code[j];
                F b;
                UNROLL for (long u = 0; u < W; ++u) b[u] = from[own[u]];
                V::store(s + j * lanes, V::template load<F>(s + j * lanes) + b);
            }
        }
    }
}

template <class In, class P>
inline void Tile<In, P>::soft_cap(float* bend) {
    const float most = (float)call.softcap * LOG2E;
    for (long j = 0; j < keys; ++j) {
        if (masked && !bits[j]) continue;
        for (long i = j * lanes; i < (j + 1) * lanes; i += W) {
            const F t = V::tanh(V::template load<F>(scores + i));
            V::store(scores + i, t * most);
            if (bend) V::store(bend + i, 1.0f - t * t);
        }
    }
}

template <class In, class P>
inline void Tile<In, P>::add_window(long first) {
    for (long j = 0; j < keys; ++j) {
        const float* a = window_rows + group->window_rows[first + j] * lanes;
        const float* b = window_columns + group->window_columns[first + j] * lanes;
        float* s = scores + j * lanes;
        for (long i = 0; i < lanes; i += W)
            V::store(s + i, V::template load<F>(s + i) + V::template load<F>(a + i) +
                                V::template load<F>(b + i));
    }
}

template <class In, class P>
inline void Tile<In, P>::add_bias() {
    const F most = V::all(HUGE_BIAS), never = V::all(-INFINITY);
    for (long q = 0; q < n; ++q) {
        const float* from = bias_row(q);
        for (long j = 0; j < keys; ++j) bias[j * lanes + q] = from[key[j] * call.bias.key];
    }
    for (long j = 0; j < keys; ++j) {
        typename V::I none = {};
        for (long i = 0; i < lanes; i += W) {
            const F given = V::template load<F>(bias + j * lanes + i);
            F b = given * LOG2E;
            b = b < -most ? -most : b;
            b = b > most ? most : b;
            none |= given == never;
            float* s = scores + j * lanes + i;
            V::store(s, V::template load<F>(s) + b);
        }
        if (V::any(none)) forbid(j);
    }
}

template <class In, class P>
inline void Tile<In, P>::forbid(long j) {
    for (long q = 0; q < n; ++q)
        if (bias[j * lanes + q] == -INFINITY) bits[j] &= ~(1ull << q);
    masked = masked || bits[j] != full;
}

template <class In, class P>
inline void Tile<In, P>::apply_mask(float* values, float low_value) {
    constexpr uint32_t every = W == 32 ? ~0u : (1u << W) - 1;
    const F low = V::all(low_value);
    for (long j = 0; j < keys; ++j) {
        if (bits[j] == full) continue;
        for (long i = 0; i < lanes; i += W) {
            uint32_t own = (uint32_t)(bits[j] >> i) & every;
            float* s = values + j * lanes + i;
            if (own == every) continue;
            V::store(s, own ? (V::lanes(own) ? V::template load<F>(s) : low) : low);
        }
    }
}

template <class In, class P>
inline void Tile<In, P>::drop(float* values) {
    typedef typename V::U U;
    const U limit = V::all((uint32_t)(call.dropout_p * 4294967296.0));
    const float keep = (float)(1.0 / (1.0 - call.dropout_p));
    for (long j = 0; j < keys; ++j) {
        const U own = V::all((uint32_t)key[j] * 0x9e3779b9u);
        for (long i = 0; i < lanes; i += W) {
            U x = V::template load<U>(noise + i) + own;
            x = (x ^ x >> 16) * 0x7feb352du;
            x = (x ^ x >> 15) * 0x846ca68bu;
            x ^= x >> 16;
            float* to = values + j * lanes + i;
            V::store(to, x >= limit ? V::template load<F>(to) * keep : F{});
        }
    }
}

#endif
