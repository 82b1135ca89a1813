// One tile of queries: its logits against a block of keys, and what the mask lets be skipped.

#ifndef FOVEAL_TILE_H
#define FOVEAL_TILE_H

#include <algorithm>
#include <cmath>

#include "ahead.h"
#include "arena.h"
#include "packing.h"
#include "plan.h"

constexpr float LOWEST = -3.4e38f;  // below every logit of a pair; that of a masked pair is -inf
constexpr float HUGE_BIAS = 3e38f;  // what a bias counts at most, times log2(e): it stays finite
constexpr float LOG2E = 1.44269504088896341f, LN2 = 0.69314718055994531f;

inline uint32_t mix(uint32_t x) {
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

template <class In, class P>
struct Tile {
    typedef typename P::V V;
    typedef typename V::F F;
    typedef typename P::Element E;
    static constexpr long W = P::width;

    const Call& call;
    const long dim, value_dim, dim_padded, value_padded;
    // the tile
    const Group* group = nullptr;
    long batch = 0, head = 0, kv_head = 0, index = 0, sub = 0;
    long n = 0, lanes = 0, vectors = 0;  // queries, rounded up to vectors, vectors
    uint64_t full = 0;
    long query[QUERIES];
    long num_keys = 0;  // of the tile
    // of a selection: the tile's blocks in order, and the tokens of its queries
    long* chosen;
    long token[QUERIES];
    uint32_t noise[QUERIES];
    E* q_features;             // (head_dim, lanes)
    float *window_rows, *window_columns;  // (window, lanes), times log2(e)
    // the block of keys
    long keys = 0;
    long key[KEYS];
    uint64_t bits[KEYS];  // which queries read a key
    bool masked = false;
    Tokens<In, P> k, v;
    Ahead ahead;
    bool careful = false;  // whether rows that are not finite are kept from who does not read them
    long num_alone = 0;
    long alone[KEYS];  // the keys of the block that are
    float* scores;  // (KEYS, lanes) logits times log2(e), then weights
    float* bias;    // (KEYS, lanes)
    int64_t code[QUERIES], key_code[KEYS];  // of a table
    bool consecutive[QUERIES / W];

    Tile(const Call& c)
        : call(c), dim(c.head_dim), value_dim(c.value_dim), dim_padded(round_up(dim, W)),
          value_padded(round_up(value_dim, W)) {}

    void allocate(Arena& arena) {
        q_features = arena.take<E>(dim * QUERIES);
        window_rows = arena.take<float>(call.window_height * QUERIES);
        window_columns = arena.take<float>(call.window_width * QUERIES);
        chosen = arena.take<long>(call.num_groups ? call.groups[0].selection.count : 0);
        scores = arena.take<float>(KEYS * QUERIES);
        bias = arena.take<float>(KEYS * QUERIES);
        k.copy = arena.take<E>(KEYS * dim_padded);
        k.rows = arena.take<E>(KEYS * dim_padded);
        v.copy = arena.take<E>(KEYS * value_padded);
        v.rows = arena.take<E>(KEYS * value_padded);
        k.zeros = arena.take<E>(dim_padded);
        v.zeros = arena.take<E>(value_padded);
    }

    template <class T>
    T* head_of(const Matrix& x, long h) const {
        return (T*)x.data + batch * x.batch + h * x.head;
    }
    long row_of_queries() const { return (batch * call.kv_heads * call.repeats + head); }
    long row_of_lse() const {
        if (call.lse_head) return batch * call.lse_batch + head * call.lse_head;
        return row_of_queries() * call.num_queries;
    }

    // -- queries ---------------------------------------------------------------------------------

    void start(long b, long h, const Group& g, long tile, long part) {
        batch = b, head = h, kv_head = h / call.repeats, group = &g, index = tile, sub = part;
        long first = part * QUERIES;
        n = g.tile_q - first < QUERIES ? g.tile_q - first : QUERIES;
        lanes = round_up(n, W), vectors = lanes / W;
        full = n == 64 ? ~0ull : (1ull << n) - 1;
        const int64_t* items = g.queries.items + tile * g.queries.item_step + first;
        for (long i = 0; i < n; ++i) query[i] = g.queries.tiles[tile] + items[i];
        num_keys = g.tile_k;
        if (g.selection.blocks) choose();
        pack_features<P>(head_of<In>(call.q, head), call.q.token, query, n, dim, lanes,
                         q_features);
        if (call.rows.data) pack_window();
        if (call.table.data) start_table();
        if (call.dropout_p > 0) start_noise();
    }

    void pack_window() {
        const Matrix* parts[] = {&call.rows, &call.columns};
        float* to[] = {window_rows, window_columns};
        long sizes[] = {call.window_height, call.window_width};
        for (int i = 0; i < 2; ++i) {
            pack_features<Float<W>>(head_of<float>(*parts[i], head), parts[i]->token, query, n,
                                    sizes[i], lanes, to[i]);
            for (long at = 0; at < sizes[i] * lanes; ++at) to[i][at] *= LOG2E;
        }
    }

    void start_noise() {
        const uint64_t given = call.seeds[batch * call.seed_step];
        uint32_t seed = mix((uint32_t)given) ^ (uint32_t)(given >> 32);
        // an example with a seed of its own draws as if it were the first
        const uint64_t first = call.seed_step ? head : row_of_queries();
        for (long i = 0; i < n; ++i) {
            uint64_t row = first * call.num_queries + query[i];
            noise[i] = mix(mix(seed + (uint32_t)row) ^ (uint32_t)(row >> 32));
        }
    }

    // -- keys ------------------------------------------------------------------------------------

    // The blocks that the tile names, each once and in order, without those of the future alone.
    void choose() {
        const Selection& s = group->selection;
        for (long i = 0; i < n; ++i) token[i] = s.first + query[i] / s.per_token;
        const long end_of_keys = call.num_keys - 1;
        const long last = s.causal ? std::min(token[n - 1], end_of_keys) : end_of_keys;
        const int64_t* list = s.blocks + (batch * call.kv_heads + kv_head) * s.unit;
        list += index * s.count;
        long* end = chosen;
        for (long i = 0; i < s.count; ++i)
            if (list[i] >= 0 && list[i] * s.size <= last) *end++ = list[i];
        std::sort(chosen, end);
        end = std::unique(chosen, end);
        num_keys = (end - chosen) * s.size;
        // the last block may reach beyond the keys, or into the future
        if (num_keys) num_keys -= std::max(0L, (end[-1] + 1) * (long)s.size - last - 1);
    }

    // Keys [first, first + count) of the chosen blocks.
    void place_chosen(long first, long count, long* to) const {
        const long size = group->selection.size;
        long block = first / size, item = first % size;
        for (long j = 0; j < count; ++j) {
            to[j] = chosen[block] * size + item;
            if (++item == size) ++block, item = 0;
        }
    }

    // The queries that stand before a key, of keys in order, do not read it.
    void hide_future() {
        long before = 0;
        for (long j = 0; j < keys; ++j) {
            while (before < n && token[before] < key[j]) ++before;
            if (before == n) bits[j] = 0;
            else bits[j] &= ~((1ull << before) - 1);
        }
    }

    // Positions of the keys [first, first + KEYS) of a tile; returns how many there are.
    long place_keys(long tile, long first, long* to) const {
        const long count = num_keys - first < KEYS ? num_keys - first : KEYS;
        if (group->selection.blocks) return place_chosen(first, count, to), count;
        if (group->num_parts == 1) {
            const Places& p = *group->keys;
            const int64_t start = p.tiles[tile], *items = p.items + tile * p.item_step + first;
            for (long j = 0; j < count; ++j) to[j] = start + items[j];
            return count;
        }
        long place = 0, filled = 0;
        for (long part = 0; part < group->num_parts && filled < count; ++part) {
            const Places& p = group->keys[part];
            const int64_t* items = p.items + tile * p.item_step - place;
            for (long j = first + filled; j < place + p.count && filled < count; ++j)
                to[filled++] = p.tiles[tile] + items[j];
            place += p.count;
        }
        return count;
    }

    void load_keys(long first, bool both_as_vectors) {
        keys = place_keys(index, first, key);
        load_bits(first);
        k.read(head_of<In>(call.k, kv_head), call.k.token, key, keys, dim, dim_padded,
               both_as_vectors);
        v.read(head_of<In>(call.v, kv_head), call.v.token, key, keys, value_dim, value_padded,
               !both_as_vectors);
    }

    void load_bits(long first) {
        uint64_t all = full;
        const bool split = group->selection.blocks && group->selection.causal;
        const uint64_t* mask = group->mask;
        if (mask) mask += index * group->mask_step + sub * group->tile_k + first;
        const uint8_t* real = call.key_mask ? call.key_mask + batch * call.num_keys : nullptr;
        for (long j = 0; j < keys; ++j) {
            uint64_t own = mask ? mask[j] & full : full;
            if (real && !real[key[j]]) own = 0;
            all &= bits[j] = own;
        }
        if (split && key[keys - 1] > token[0]) {
            hide_future();
            all = 0;
        }
        masked = all != full;
    }

    // Notes the keys and values of the next block, of this tile or of the next one in the group.
    void look_ahead(long first) {
        if constexpr (!Blocking<W>::stages) return;
        ahead.clear();
        const bool turn = first + KEYS >= num_keys;
        if (turn && (index + 1 >= group->num_tiles || group->selection.blocks)) return;
        long next[KEYS];
        const long count = place_keys(index + turn, turn ? 0 : first + KEYS, next);
        const In *ks = head_of<In>(call.k, kv_head), *vs = head_of<In>(call.v, kv_head);
        for (long j = 0; j < count; ++j) {
            ahead.add(ks + next[j] * call.k.token, dim * sizeof(In));
            ahead.add(vs + next[j] * call.v.token, value_dim * sizeof(In));
        }
        if (turn) look_at_queries(call.q, dim);
    }

    // Notes rows of a matrix for the queries of the next tile.
    void look_at_queries(const Matrix& x, long size) {
        const int64_t* items = group->queries.items + (index + 1) * group->queries.item_step;
        const In* rows = head_of<In>(x, head) + group->queries.tiles[index + 1] * x.token;
        for (long i = 0; i < n; ++i) ahead.add(rows + items[i] * x.token, size * sizeof(In));
    }

    // Queries [first, last) that read any of the keys [j, j + count).
    void queries_of(long j, long count, long& first, long& last) const {
        first = 0, last = n;
        if (!masked) return;
        uint64_t any = 0;
        for (long i = j; i < j + count; ++i) any |= bits[i];
        first = any ? __builtin_ctzll(any) : 0;
        last = any ? 64 - __builtin_clzll(any) : 0;
    }

    // Keys [first, last) of the block that any of the queries [q, q + count) reads.
    void keys_of(long q, long count, long& first, long& last) const {
        first = 0, last = keys;
        if (!masked) return;
        uint64_t group_bits = ((1ull << count) - 1) << q;
        while (last > 0 && !(bits[last - 1] & group_bits)) --last;
        while (first < last && !(bits[first] & group_bits)) ++first;
    }

    // -- products --------------------------------------------------------------------------------

    // to (KEYS, lanes) = alpha * tokens . features, where the mask leaves anything.
    void dots(const E* const* tokens, const E* features, long size, float alpha, float* to) {
        float* rows[KEYS];
        for (long j = 0; j < keys; ++j) rows[j] = to + j * lanes;
        ByRows<P> product{tokens, 0, ceil_div(size, P::pack), features, lanes, rows, alpha, false};
        for (long j = 0; j < keys; j += ROWS) {
            long count = keys - j < ROWS ? keys - j : ROWS, first, last;
            queries_of(j, count, first, last);
            ahead.fetch(j + count, keys);
            cover<P>(j, count, first / W, ceil_div(last, W), product);
        }
    }

    // Takes the keys whose row is not finite, and that some query does not read, out of the block:
    // in a product, 0 * NaN would reach that query.
    void set_alone(Tokens<In, P>& tokens, const In* base, long stride, long size, long padded) {
        num_alone = 0;
        for (long j = 0; j < keys; ++j) {
            if (bits[j] == full || finite(base + key[j] * stride, size)) continue;
            tokens.clear(j, padded);
            alone[num_alone++] = j;
        }
    }

    // What `sum_keys` left out: to[q] += weights[key][q] * row of the key, for its readers.
    void add_alone(const float* weights, const In* base, long stride, long size, long padded,
                   float* to) {
        for (long i = 0; i < num_alone; ++i)
            for (long q = 0; q < n; ++q)
                if (bits[alone[i]] >> q & 1)
                    add_row(to + q * padded, weights[alone[i] * lanes + q],
                            base + key[alone[i]] * stride, size);
    }

    // to[q] (QUERIES, padded) += sum over keys of weights[key][q] * tokens[key].
    void sum_keys(const E* weights, const E* const* tokens, long padded, float* to) {
        ByColumns<P> product{weights, lanes, tokens, 0, 0, to, padded};
        for (long q = 0; q < n; q += ROWS) {
            long count = n - q < ROWS ? n - q : ROWS, first, last;
            keys_of(q, count, first, last);
            product.first = first / P::pack, product.last = ceil_div(last, P::pack);
            if (first < last) cover<P>(q, count, 0, padded / W, product);
        }
    }

    // to[key] += alpha * sum over queries of weights[key][q] * tokens[q].
    void sum_queries(const E* const* weights, const E* tokens, long padded, float alpha,
                     float* const* to) {
        ByRows<P> product{weights, 0, 0, tokens, padded, to, alpha, true};
        for (long j = 0; j < keys; j += ROWS) {
            long count = keys - j < ROWS ? keys - j : ROWS, first, last;
            queries_of(j, count, first, last);
            product.first = first / P::pack, product.last = ceil_div(last, P::pack);
            if (first < last) cover<P>(j, count, 0, padded / W, product);
        }
    }

    // -- logits, in logits.h ---------------------------------------------------------------------

    // In base 2; -inf where the head has none.
    float sink() const { return call.sinks ? call.sinks[head] * LOG2E : -INFINITY; }

    const float* bias_row(long q) const {
        const Bias& b = call.bias;
        return b.data + batch * b.batch + head * b.head + query[q] * b.query;
    }

    // Of all pairs; those that the mask forbids hold anything.
    // bend (KEYS, lanes), or null: the derivatives of the soft-cap.
    void logits(long first, float* bend = nullptr);
    // scores over the cap -> logits
    void soft_cap(float* bend);
    // Codes of the tile's queries, and which vectors of them are consecutive.
    void start_table();
    void add_table();
    void add_window(long first);
    void add_bias();
    // A bias of -inf is a mask.
    void forbid(long j);
    // values (KEYS, lanes) become `low` where the mask forbids the pair.
    void apply_mask(float* values, float low_value);
    // values (KEYS, lanes) times 0 or 1 / (1 - p); the same draw for the same query and key.
    void drop(float* values);
};

#endif
