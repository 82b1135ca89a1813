// The forward pass of one tile: softmax over blocks of keys with a running maximum.
// Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018).

#ifndef FOVEAL_FORWARD_H
#define FOVEAL_FORWARD_H

#include "logits.h"

template <class In, class P>
struct Forward : Tile<In, P> {
    typedef Tile<In, P> Base;
    typedef typename P::V V;
    typedef typename V::F F;
    typedef typename P::Element E;
    using Base::W;

    Arena arena;
    float *top, *total, *shrink;  // (QUERIES) running maximum, sum of weights, rescaling
    float* sums;                  // (QUERIES, value_padded)
    E* packed;                    // (KEYS / 2, QUERIES) weights as pairs

    explicit Forward(const Call& c) : Base(c) {
        Base::allocate(arena);
        top = arena.take<float>(QUERIES);
        total = arena.take<float>(QUERIES);
        shrink = arena.take<float>(QUERIES);
        sums = arena.take<float>(QUERIES * this->value_padded);
        packed = arena.take<E>(P::pack == 1 ? 0 : KEYS * QUERIES);
    }

    void run(long b, long h, const Group& g, long tile, long part) {
        this->start(b, h, g, tile, part);
        this->careful = false;
        const bool any_masked = blocks();
        // 0 * NaN came from a value that some query must not read: once more, apart
        if (any_masked && !finite(sums, this->n * this->value_padded)) {
            this->careful = true;
            blocks();
        }
        finish();
    }

    // All blocks of keys; returns whether a mask hid anything.
    bool blocks() {
        bool any_masked = false;
        for (long i = 0; i < this->lanes; ++i) top[i] = LOWEST, total[i] = 0;
        memset(sums, 0, this->n * this->value_padded * 4);
        for (long first = 0; first < this->num_keys; first += KEYS) {
            this->load_keys(first, false);
            this->look_ahead(first);
            this->logits(first);
            if (this->masked) this->apply_mask(this->scores, -INFINITY);
            any_masked |= this->masked;
            weigh(first > 0);
            if (this->call.dropout_p > 0) this->drop(this->scores);
            sum_values();
        }
        return any_masked;
    }

    void sum_values() {
        const Call& c = this->call;
        const long size = this->value_dim, padded = this->value_padded;
        const In* base = this->template head_of<In>(c.v, this->kv_head);
        const bool apart = this->careful && this->masked;
        if (apart) this->set_alone(this->v, base, c.v.token, size, padded);
        this->sum_keys(weights(), this->v.vector, padded, sums);
        if (apart) this->add_alone(this->scores, base, c.v.token, size, padded, sums);
    }

    // scores become weights relative to the maximum so far; earlier sums shrink to match.
    void weigh(bool later) {
        bool grew = false;
        const long lanes = this->lanes, keys = this->keys;
        for (long i = 0; i < lanes; i += W) {
            float* s = this->scores + i;
            const F before = V::template load<F>(top + i);
            F most[4] = {before, before, before, before};
            long j = 0;
            for (; j + 4 <= keys; j += 4) UNROLL for (int u = 0; u < 4; ++u)
                most[u] = V::larger(V::template load<F>(s + (j + u) * lanes), most[u]);
            for (; j < keys; ++j) most[0] = V::larger(V::template load<F>(s + j * lanes), most[0]);
            const F now = V::larger(V::larger(most[0], most[1]), V::larger(most[2], most[3]));
            F sum[2] = {};
            for (j = 0; j + 2 <= keys; j += 2) UNROLL for (int u = 0; u < 2; ++u) {
                F p = V::exp2(V::template load<F>(s + (j + u) * lanes) - now);
                sum[u] += p;
                V::store(s + (j + u) * lanes, p);
            }
            if (j < keys) {
                F p = V::exp2(V::template load<F>(s + j * lanes) - now);
                sum[0] += p;
                V::store(s + j * lanes, p);
            }
            const F less = V::exp2(before - now);
            V::store(total + i, V::template load<F>(total + i) * less + sum[0] + sum[1]);
            V::store(top + i, now);
            V::store(shrink + i, less);
        }
        for (long q = 0; later && q < this->n; ++q) grew |= shrink[q] != 1.0f;
        if (grew) rescale();
    }

    void rescale() {
        for (long q = 0; q < this->n; ++q) {
            float* row = sums + q * this->value_padded;
            if (shrink[q] == 1.0f) continue;
            for (long d = 0; d < this->value_padded; d += W)
                V::store(row + d, V::template load<F>(row + d) * shrink[q]);
        }
    }

    // One more key, without a value.
    void add_sink(long q, float sink) {
        if (sink > top[q]) {
            const float less = exp2f(top[q] - sink);
            float* row = sums + q * this->value_padded;
            for (long d = 0; d < this->value_padded; ++d) row[d] *= less;
            total[q] *= less, top[q] = sink;
        }
        total[q] += exp2f(sink - top[q]);
    }

    const E* weights() {
        if constexpr (P::pack == 1) {
            return this->scores;
        } else {
            pack_pairs(this->scores, this->keys, this->lanes, packed);
            return packed;
        }
    }

    void finish() {
        In* out = this->template head_of<In>(this->call.out, this->head);
        float* lse = this->call.lse + this->row_of_lse();
        const float sink = this->sink();
        for (long q = 0; q < this->n; ++q) {
            if (sink != -INFINITY) add_sink(q, sink);
            const bool empty = total[q] == 0;  // the largest of any logits weighs one
            const float* from = sums + q * this->value_padded;
            const float share = empty ? 0.0f : 1.0f / total[q];
            In* to = out + this->query[q] * this->call.out.token;
            if (empty) {
                for (long d = 0; d < this->value_dim; ++d) put(to + d, 0.0f);
            } else {
                for (long d = 0; d < this->value_dim; ++d) put(to + d, from[d] * share);
            }
            lse[this->query[q]] = empty ? -INFINITY : top[q] * LN2 + logf(total[q]);
        }
    }
};

#endif
