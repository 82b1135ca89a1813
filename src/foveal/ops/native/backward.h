// The backward pass of one tile: weights again from the saved log-sum-exp (Dao et al.,
// "FlashAttention", 2022), with delta = rowsum(d_out * out) - d_lse.

#ifndef FOVEAL_BACKWARD_H
#define FOVEAL_BACKWARD_H

#include "logits.h"

template <class In, class P>
struct Backward : Tile<In, P> {
    typedef Tile<In, P> Base;
    typedef typename P::V V;
    typedef typename V::F F;
    typedef typename P::Element E;
    using Base::W;

    Arena arena;
    E *out_features, *q_tokens, *out_tokens;  // of d_out, q and d_out
    float *lse, *delta;                       // (QUERIES); lse times log2(e)
    float* share;                             // (QUERIES) see `sum_weights`
    bool recompute = false;
    long num_odd_q = 0, num_odd_out = 0;  // queries that are not finite in q or in d_out
    long odd_q[QUERIES], odd_out[QUERIES];
    float *dropped, *slopes;                  // (KEYS, lanes) weights after dropout; d_scores
    float* bend = nullptr;                    // (KEYS, lanes) derivatives of the soft-cap
    float* d_q;                               // (QUERIES, dim_padded)
    float *d_rows, *d_columns;                // (window, lanes)
    E *packed_weights, *packed_slopes, *packed_pairs;
    const E* weight_rows[KEYS];
    const E* slope_rows[KEYS];
    float* d_bias = nullptr;   // where this thread sums the gradient of the bias
    float* d_table = nullptr;  // and of the head's numbers by offset

    explicit Backward(const Call& c) : Base(c) {
        Base::allocate(arena);
        out_features = arena.take<E>(this->value_dim * QUERIES);
        q_tokens = arena.take<E>(this->dim_padded * QUERIES);
        out_tokens = arena.take<E>(this->value_padded * QUERIES);
        lse = arena.take<float>(QUERIES);
        delta = arena.take<float>(QUERIES);
        share = arena.take<float>(QUERIES);
        dropped = arena.take<float>(c.dropout_p > 0 ? KEYS * QUERIES : 0);
        slopes = arena.take<float>(KEYS * QUERIES);
        if (c.softcap > 0) bend = arena.take<float>(KEYS * QUERIES);
        d_q = arena.take<float>(this->dim_padded * QUERIES);
        d_rows = arena.take<float>(c.window_height * QUERIES);
        d_columns = arena.take<float>(c.window_width * QUERIES);
        const size_t pairs = P::pack == 1 ? 0 : KEYS * QUERIES / 2;
        packed_weights = arena.take<E>(pairs);
        packed_slopes = arena.take<E>(pairs);
        packed_pairs = arena.take<E>(pairs);
    }

    // d_k and d_v: rows of float sums for a key position, `k_row` and `v_row` apart.
    void run(long b, long h, const Group& g, long tile, long part, float* d_k, long k_row,
             float* d_v, long v_row) {
        this->start(b, h, g, tile, part);
        load_gradients();
        recompute = any_huge();
        if (recompute) sum_weights();
        memset(d_q, 0, this->n * this->dim_padded * 4);
        if (this->call.rows.data) {
            memset(d_rows, 0, this->call.window_height * this->lanes * 4);
            memset(d_columns, 0, this->call.window_width * this->lanes * 4);
        }
        for (long first = 0; first < this->num_keys; first += KEYS) {
            this->load_keys(first, true);
            this->look_ahead(first);
            this->logits(first, bend);
            this->dots(this->v.row, out_features, this->value_dim, 1.0f, slopes);
            if (recompute) slope<true>();
            else slope<false>();
            if (this->call.rows.data) sum_window(first);
            if (this->call.bias.data && d_bias) sum_bias();
            if (d_table) sum_table();
            if (bend) bend_slopes();
            sum_products(d_k, k_row, d_v, v_row);
        }
        finish();
    }

    void load_gradients() {
        const Call& c = this->call;
        const In* d_out = this->template head_of<In>(c.d_out, this->head);
        const In* out = this->template head_of<In>(c.out, this->head);
        const In* q = this->template head_of<In>(c.q, this->head);
        const long n = this->n, *at = this->query;
        pack_features<P>(d_out, c.d_out.token, at, n, this->value_dim, this->lanes, out_features);
        pack_tokens<P>(d_out, c.d_out.token, at, n, this->value_dim, this->value_padded,
                       out_tokens);
        pack_tokens<P>(q, c.q.token, at, n, this->dim, this->dim_padded, q_tokens);
        num_odd_q = set_odd(q, c.q.token, this->dim, this->dim_padded, q_tokens, odd_q);
        num_odd_out = set_odd(d_out, c.d_out.token, this->value_dim, this->value_padded,
                              out_tokens, odd_out);
        const long row = this->row_of_lse();
        for (long i = 0; i < this->lanes; ++i) {
            lse[i] = -LOWEST, delta[i] = 0;  // no weight beyond the queries
            if (i >= n || c.lse[row + at[i]] == -INFINITY) continue;
            lse[i] = c.lse[row + at[i]] * LOG2E;
            delta[i] = inner(out + at[i] * c.out.token, d_out + at[i] * c.d_out.token) -
                       c.d_lse[row + at[i]];
            if (c.delta) c.delta[row + at[i]] = delta[i];
        }
    }

    // Takes rows of queries that are not finite out of the products over queries, where 0 * NaN
    // would reach keys that the query does not read; `add_odd` puts them back for those it reads.
    long set_odd(const In* base, long stride, long size, long padded, E* tokens, long* odd) {
        long found = 0;
        for (long i = 0; i < this->n; ++i) {
            if (finite(base + this->query[i] * stride, size)) continue;
            odd[found++] = i;
            E* row = tokens + i / P::pack * padded;
            const E kept = P::pack == 1 ? E(0) : i % 2 ? E(0xffff) : E(0xffff0000u);
            for (long d = 0; d < padded; ++d) {
                if constexpr (P::pack == 1) row[d] = kept;
                else row[d] &= kept;
            }
        }
        return found;
    }

    void add_odd(const long* odd, long count, const Matrix& x, long size, const float* weights,
                 float alpha, float* const* to) {
        const In* base = this->template head_of<In>(x, this->head);
        for (long i = 0; i < count; ++i)
            for (long j = 0; j < this->keys; ++j)
                if (this->bits[j] >> odd[i] & 1)
                    add_row(to[j], alpha * weights[j * this->lanes + odd[i]],
                            base + this->query[odd[i]] * x.token, size);
    }

    // Whether the log-sum-exp of a query is so large that its rounding would show in the weights.
    bool any_huge() const {
        for (long q = 0; q < this->n; ++q)
            if (lse[q] != -LOWEST && fabsf(lse[q]) > 1024) return true;
        return false;
    }

    // Once more the softmax's maximum, in place of lse, and the reciprocal of its sum.
    void sum_weights() {
        const long lanes = this->lanes;
        const F lowest = V::all(LOWEST);
        F top[QUERIES / W], total[QUERIES / W];
        for (long i = 0; i < this->vectors; ++i) top[i] = lowest, total[i] = F{};
        for (long first = 0; first < this->num_keys; first += KEYS) {
            this->load_keys(first, true);
            this->logits(first);
            if (this->masked) this->apply_mask(this->scores, -INFINITY);
            for (long i = 0; i < this->vectors; ++i) {
                const float* s = this->scores + i * W;
                F now = top[i], sum = {};
                for (long j = 0; j < this->keys; ++j)
                    now = V::larger(V::template load<F>(s + j * lanes), now);
                for (long j = 0; j < this->keys; ++j)
                    sum += V::exp2(V::template load<F>(s + j * lanes) - now);
                total[i] = total[i] * V::exp2(top[i] - now) + sum;
                top[i] = now;
            }
        }
        const float sink = this->sink();
        for (long q = 0; q < this->n; ++q) {
            float sum = total[q / W][q % W], most = top[q / W][q % W];
            if (sink != -INFINITY) {
                const float before = most;
                most = sink > most ? sink : most;
                sum = sum * exp2f(before - most) + exp2f(sink - most);
            }
            share[q] = sum == 0 ? 0 : 1 / sum;
            if (sum != 0) lse[q] = most;
        }
    }

    float inner(const In* a, const In* b) const {
        F sum = {};
        long d = 0;
        for (; d + W <= this->value_dim; d += W) {
            if constexpr (std::is_same<In, float>::value) {
                sum += V::template load<F>(a + d) * V::template load<F>(b + d);
            } else {
                float x[W], y[W];
                UNROLL for (long i = 0; i < W; ++i) x[i] = widen(a[d + i]), y[i] = widen(b[d + i]);
                sum += V::template load<F>(x) * V::template load<F>(y);
            }
        }
        float parts[W], total = 0;
        V::store(parts, sum);
        for (float part : parts) total += part;
        for (; d < this->value_dim; ++d) total += widen(a[d]) * widen(b[d]);
        return total;
    }

    // scores -> weights; slopes: the gradient of the dropped weights -> that of the scores
    template <bool exact>
    void slope() {
        const long lanes = this->lanes, size = this->keys * lanes;
        float* weights = this->scores;
        for (long j = 0; j < size; j += lanes)
            for (long i = 0; i < lanes; i += W) {
                F p = V::exp2(V::template load<F>(weights + j + i) - V::template load<F>(lse + i));
                V::store(weights + j + i, exact ? p * V::template load<F>(share + i) : p);
            }
        if (this->masked) this->apply_mask(weights, 0);
        if (this->call.dropout_p > 0) {
            memcpy(dropped, weights, size * 4);
            this->drop(dropped);
            this->drop(slopes);
        }
        for (long j = 0; j < size; j += lanes)
            for (long i = 0; i < lanes; i += W) {
                F p = V::template load<F>(weights + j + i);
                F s = p * (V::template load<F>(slopes + j + i) - V::template load<F>(delta + i));
                // slopes of skipped pairs were never computed
                V::store(slopes + j + i, this->masked ? (p == 0 ? F{} : s) : s);
            }
    }

    // Slopes of the capped logits -> of those before; a pair that was skipped has no derivative.
    void bend_slopes() {
        for (long i = 0; i < this->keys * this->lanes; i += W) {
            const F s = V::template load<F>(slopes + i);
            V::store(slopes + i, s == 0.0f ? F{} : s * V::template load<F>(bend + i));
        }
    }

    void sum_window(long first) {
        const Group& g = *this->group;
        const long lanes = this->lanes;
        for (long j = 0; j < this->keys; ++j) {
            float* a = d_rows + g.window_rows[first + j] * lanes;
            float* b = d_columns + g.window_columns[first + j] * lanes;
            for (long i = 0; i < lanes; i += W) {
                F s = V::template load<F>(slopes + j * lanes + i);
                V::store(a + i, V::template load<F>(a + i) + s);
                V::store(b + i, V::template load<F>(b + i) + s);
            }
        }
    }

    void sum_bias() {
        const Bias& b = this->call.bias;
        for (long q = 0; q < this->n; ++q) {
            float* to = d_bias + (this->bias_row(q) - b.data);
            for (long j = 0; j < this->keys; ++j)
                to[this->key[j] * b.key] += slopes[j * this->lanes + q];
        }
    }

    void sum_table() {
        const long lanes = this->lanes;
        for (long i = 0; i < this->vectors; ++i) {
            const int64_t* own = this->code + i * W;
            const long count = this->n - i * W < W ? this->n - i * W : W;
            for (long j = 0; j < this->keys; ++j) {
                float* to = d_table - this->key_code[j];
                const float* from = slopes + j * lanes + i * W;
                if (this->consecutive[i] && count == W)
                    V::store(to + own[0], V::template load<F>(to + own[0]) +
                                              V::template load<F>(from));
                else
                    for (long u = 0; u < count; ++u) to[own[u]] += from[u];
            }
        }
    }

    void sum_products(float* d_k, long k_row, float* d_v, long v_row) {
        float *k_rows[KEYS], *v_rows[KEYS];
        for (long j = 0; j < this->keys; ++j) {
            k_rows[j] = d_k + this->key[j] * k_row;
            v_rows[j] = d_v + this->key[j] * v_row;
        }
        const Call& c = this->call;
        const float scale = (float)c.scale;
        const float* weights = c.dropout_p > 0 ? dropped : this->scores;
        const E* pairs = as_operands(weights);
        this->sum_queries(weight_rows, out_tokens, this->value_padded, 1.0f, v_rows);
        this->sum_queries(slope_rows, q_tokens, this->dim_padded, scale, k_rows);
        add_odd(odd_out, num_odd_out, c.d_out, this->value_dim, weights, 1.0f, v_rows);
        add_odd(odd_q, num_odd_q, c.q, this->dim, slopes, scale, k_rows);
        const In* base = this->template head_of<In>(c.k, this->kv_head);
        if (this->masked)
            this->set_alone(this->k, base, c.k.token, this->dim, this->dim_padded);
        this->sum_keys(pairs, this->k.vector, this->dim_padded, d_q);
        if (this->masked)
            this->add_alone(slopes, base, c.k.token, this->dim, this->dim_padded, d_q);
    }

    // Points weight_rows and slope_rows at their operands; returns slopes for `sum_keys`.
    const E* as_operands(const float* weights) {
        const long lanes = this->lanes, keys = this->keys;
        if constexpr (P::pack == 1) {
            for (long j = 0; j < keys; ++j) {
                weight_rows[j] = weights + j * lanes;
                slope_rows[j] = slopes + j * lanes;
            }
            return slopes;
        } else {
            pack_rows(weights, keys, lanes, packed_weights);
            pack_rows(slopes, keys, lanes, packed_slopes);
            pack_pairs(slopes, keys, lanes, packed_pairs);
            for (long j = 0; j < keys; ++j) {
                weight_rows[j] = packed_weights + j * lanes / 2;
                slope_rows[j] = packed_slopes + j * lanes / 2;
            }
            return packed_pairs;
        }
    }

    void finish() {
        const Call& c = this->call;
        In* to = this->template head_of<In>(c.d_q, this->head);
        const float scale = (float)c.scale;
        for (long q = 0; q < this->n; ++q) {
            In* row = to + this->query[q] * c.d_q.token;
            const float* from = d_q + q * this->dim_padded;
            for (long d = 0; d < this->dim; ++d) put(row + d, from[d] * scale);
        }
        if (!c.rows.data) return;
        write_window(c.d_rows, d_rows, c.window_height);
        write_window(c.d_columns, d_columns, c.window_width);
    }

    void write_window(const Matrix& to, const float* from, long size) {
        float* base = this->template head_of<float>(to, this->head);
        for (long q = 0; q < this->n; ++q)
            for (long a = 0; a < size; ++a)
                base[this->query[q] * to.token + a] = from[a * this->lanes + q];
    }
};

#endif
