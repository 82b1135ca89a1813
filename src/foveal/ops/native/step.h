// One more token through a stack of small pre-norm blocks, in one thread: every weight is read
// once, so a step takes as long as reading them from the processor's caches.

#ifndef FOVEAL_STEP_H
#define FOVEAL_STEP_H

#include <cmath>

#include "plan.h"
#include "vectors.h"

// y[i] = bias[i] + weight[i] . x, weight (out, in); several rows at once share the loads of x.
template <int W, int ROWS>
INLINE void dots(const float* weight, const float* x, long in, float* y) {
    typedef typename Vec<W>::F F;
    F sums[ROWS] = {};
    long d = 0;
    for (; d + W <= in; d += W) {
        const F part = Vec<W>::template load<F>(x + d);
        for (int r = 0; r < ROWS; ++r)
            sums[r] += part * Vec<W>::template load<F>(weight + r * in + d);
    }
    for (int r = 0; r < ROWS; ++r) {
        float sum = 0;
        for (int lane = 0; lane < W; ++lane) sum += sums[r][lane];
        for (long rest = d; rest < in; ++rest) sum += x[rest] * weight[r * in + rest];
        y[r] = sum;
    }
}

template <int W>
void product(const Affine& layer, const float* x, long in, long out, float* y) {
    long i = 0;
    for (; i + 8 <= out; i += 8) dots<W, 8>(layer.weight + i * in, x, in, y + i);
    for (; i < out; ++i) dots<W, 1>(layer.weight + i * in, x, in, y + i);
    if (layer.bias)
        for (i = 0; i < out; ++i) y[i] += layer.bias[i];
}

inline void layer_norm(const Affine& norm, const float* x, long size, float* y) {
    double mean = 0, square = 0;
    for (long d = 0; d < size; ++d) mean += x[d];
    mean /= size;
    for (long d = 0; d < size; ++d) square += (x[d] - mean) * (x[d] - mean);
    const float shift = (float)mean, factor = (float)(1 / std::sqrt(square / size + norm.eps));
    for (long d = 0; d < size; ++d) {
        y[d] = (x[d] - shift) * factor;
        if (norm.weight) y[d] *= norm.weight[d];
        if (norm.bias) y[d] += norm.bias[d];
    }
}

// Rotary positions: cosines, then signed sines, of one position.
inline void turn(const float* angles, float* x, long size) {
    const float *cos = angles, *sin = angles + size;
    for (long d = 0; d < size / 2; ++d) {
        const float a = x[d], b = x[d + size / 2];
        x[d] = a * cos[d] + b * sin[d];
        x[d + size / 2] = b * cos[d + size / 2] + a * sin[d + size / 2];
    }
}

// Softmax attention of one query over `count` keys, which lie one after the other.
template <int W>
void attend_one(const float* q, const float* keys, const float* values, long count, long size,
                float scale, float* logits, float* out) {
    float most = -INFINITY, total = 0;
    for (long t = 0; t < count; ++t) {
        dots<W, 1>(keys + t * size, q, size, logits + t);
        logits[t] *= scale;
        most = std::max(most, logits[t]);
    }
    for (long d = 0; d < size; ++d) out[d] = 0;
    for (long t = 0; t < count; ++t) {
        const float weight = std::exp(logits[t] - most);
        total += weight;
        add_row(out, weight, values + t * size, size);
    }
    for (long d = 0; d < size; ++d) out[d] /= total;
}

template <int W>
void step_layer(const Stack& s, const Layer& layer, float* room) {
    const long E = s.head_dim, turning = s.heads + s.kv_heads, all = turning + s.kv_heads;
    float *normed = room, *qkv = normed + s.dim, *read = qkv + all * E, *wide = read + s.heads * E;
    float* logits = wide + s.hidden;
    layer_norm(layer.attn_norm, s.x, s.dim, normed);
    product<W>(layer.to_qkv, normed, s.dim, all * E, qkv);
    if (s.angles)
        for (long head = 0; head < turning; ++head) turn(s.angles, qkv + head * E, E);
    for (long head = 0; head < s.kv_heads; ++head) {
        const long to = head * layer.head_step + layer.place * E;
        memcpy(layer.keys + to, qkv + (s.heads + head) * E, E * sizeof(float));
        memcpy(layer.values + to, qkv + (turning + head) * E, E * sizeof(float));
    }
    const float scale = 1 / std::sqrt((float)E);
    for (long head = 0; head < s.heads; ++head) {
        const long from = head / (s.heads / s.kv_heads) * layer.head_step;
        attend_one<W>(qkv + head * E, layer.keys + from, layer.values + from, layer.held, E, scale,
                      logits, read + head * E);
    }
    product<W>(layer.to_out, read, s.heads * E, s.dim, normed);
    for (long d = 0; d < s.dim; ++d) s.x[d] += normed[d];
    layer_norm(layer.ff_norm, s.x, s.dim, normed);
    product<W>(layer.to_hidden, normed, s.dim, s.hidden, wide);
    for (long d = 0; d < s.hidden; ++d)
        wide[d] *= 0.5f * (1 + std::erf(wide[d] * 0.70710678f));  // the exact GELU
    product<W>(layer.ff_out, wide, s.hidden, s.dim, normed);
    for (long d = 0; d < s.dim; ++d) s.x[d] += normed[d];
}

template <int W>
void step_stack(const Stack& s) {
    long most = 0;
    for (long i = 0; i < s.num_layers; ++i) most = std::max(most, (long)s.layers[i].held);
    const long heads = 2 * (s.heads + s.kv_heads);
    std::vector<float> room(s.dim + heads * s.head_dim + s.hidden + most);
    for (long i = 0; i < s.num_layers; ++i) step_layer<W>(s, s.layers[i], room.data());
}

#endif
