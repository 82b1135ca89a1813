// foveal's CPU kernel: exact attention over a tile plan, forward and backward.
//
// Each thread takes whole tiles (forward) or whole heads (backward) and writes where nobody else
// does, so there are no atomics and results do not depend on timing. Compiled once for each
// instruction set: FOVEAL_WIDTH floats in a vector. See docs/decisions/0004-a-native-kernel.md.

#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#ifndef _OPENMP
#include <thread>
#endif

#include "backward.h"
#include "forward.h"
#include "step.h"

#ifndef FOVEAL_WIDTH
#define FOVEAL_WIDTH 4
#endif

#ifdef __GLIBCXX__
namespace std {
// what <vector> of a recent compiler asks of a library that older systems have not
[[noreturn]] __attribute__((visibility("hidden"))) void __throw_bad_array_new_length() { throw bad_alloc(); }
}  // namespace std
#endif

namespace {

// fn(next) on each thread; next() hands out 0 ... tasks - 1 in order, then -1.
template <class Fn>
void parallel(long threads, long tasks, Fn fn) {
    std::atomic<long> counter{0};
    std::atomic<bool> failed{false};
    auto next = [&]() {
        long task = counter.fetch_add(1, std::memory_order_relaxed);
        return task < tasks ? task : -1;
    };
    auto guarded = [&]() {  // an exception must not leave a thread
        try {
            fn(next);
        } catch (const std::bad_alloc&) {
            failed = true;
        }
    };
    threads = std::max(1L, std::min(threads, tasks));
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
    guarded();
#else
    std::vector<std::thread> pool;
    for (long i = 1; i < threads; ++i) pool.emplace_back(guarded);
    guarded();
    for (auto& thread : pool) thread.join();
#endif
    if (failed) throw std::bad_alloc();
}

// Part of all tiles of a head: [first, last) counted through the groups, or in the given order.
template <class Fn>
void each_tile(const Call& call, long first, long last, Fn fn) {
    for (long i = first; call.order && i < last; ++i) {
        const Group& group = call.groups[call.order[2 * i]];
        const long parts = ceil_div(group.tile_q, QUERIES);
        for (long part = 0; part < parts; ++part) fn(group, call.order[2 * i + 1], part);
    }
    if (call.order) return;
    for (long g = 0; g < call.num_groups && last > 0; ++g) {
        const Group& group = call.groups[g];
        const long parts = ceil_div(group.tile_q, QUERIES);
        for (long tile = std::max(0L, first); tile < std::min(last, (long)group.num_tiles); ++tile)
            for (long part = 0; part < parts; ++part) fn(group, tile, part);
        first -= group.num_tiles, last -= group.num_tiles;
    }
}

long tiles_of(const Call& call) {
    long total = 0;
    for (long g = 0; g < call.num_groups; ++g) total += call.groups[g].num_tiles;
    return total;
}

template <class In, class P>
void forward(const Call& call) {
    const long heads = call.kv_heads * call.repeats, total = tiles_of(call);
    const long share = total * heads * call.batch / (8 * call.threads);
    const long step = std::max(1L, std::min(16L, share));
    const long pieces = ceil_div(total, step);
    parallel(call.threads, call.batch * heads * pieces, [&](auto next) {
        Forward<In, P> tiles(call);
        for (long task = next(); task >= 0; task = next()) {
            // heads of the same tokens lie side by side in most tensors
            const long b = task / (heads * pieces), rest = task % (heads * pieces);
            const long row = call.order ? b * heads + rest % heads : task / pieces;
            const long first = (call.order ? rest / heads : task % pieces) * step;
            each_tile(call, first, std::min(total, first + step),
                      [&](const Group& group, long tile, long part) {
                          tiles.run(row / heads, row % heads, group, tile, part);
                      });
        }
    });
}

// -- backward -----------------------------------------------------------------------------------

// Sums of d_k and d_v: in place, or floats that are converted when a head is complete.
template <class In, class P>
struct Sums {
    const Call& call;
    const long k_width, v_width;
    const bool in_place;
    explicit Sums(const Call& c, long splits)
        : call(c), k_width(round_up(c.head_dim, P::width)),
          v_width(round_up(c.value_dim, P::width)),
          in_place(splits == 1 && sizeof(In) == 4 && k_width == c.head_dim &&
                   v_width == c.value_dim) {}
    size_t size() const { return call.num_keys * (k_width + v_width); }

    void clear(float* sum, long first, long last) const {
        float* values = sum + call.num_keys * k_width;
        std::fill(sum + first * k_width, sum + last * k_width, 0.0f);
        std::fill(values + first * v_width, values + last * v_width, 0.0f);
    }

    // parts (count, size) added in order -> d_k and d_v of one head, keys [first, last)
    void write(const float* parts, long count, long b, long g, long first, long last) const {
        one(parts, count, call.d_k, b, g, first, last, call.head_dim, k_width);
        one(parts + call.num_keys * k_width, count, call.d_v, b, g, first, last, call.value_dim,
            v_width);
    }

  private:
    void one(const float* parts, long count, const Matrix& x, long b, long g, long first,
             long last, long dim, long width) const {
        In* to = (In*)x.data + b * x.batch + g * x.head;
        for (long key = first; key < last; ++key)
            for (long d = 0; d < dim; ++d) {
                float sum = 0;
                for (long i = 0; i < count; ++i) sum += parts[i * size() + key * width + d];
                put(to + key * x.token + d, sum);
            }
    }
};

// Into how many parts the tiles of a head are cut, so that every thread has work.
long splits_of(const Call& call, long total, size_t sums) {
    const long units = call.batch * call.kv_heads;
    long splits = 1;
    const long most = std::min(total, (long)((64u << 20) / (sums * units + 1)));  // 256 MB
    while (units * splits < 4 * call.threads && (units * splits) % call.threads && splits < most)
        ++splits;
    return splits;
}

// d_table: sums of the numbers by offset, for each of the head's queries; or null.
template <class In, class P>
void backward_of_head(Backward<In, P>& tiles, const Call& call, long b, long g, long first,
                      long last, float* d_k, long k_row, float* d_v, long v_row,
                      float* d_table) {
    for (long r = 0; r < call.repeats; ++r, d_table += d_table ? call.table.size : 0) {
        tiles.d_table = d_table;
        each_tile(call, first, last, [&](const Group& group, long tile, long part) {
            tiles.run(b, g * call.repeats + r, group, tile, part, d_k, k_row, d_v, v_row);
        });
    }
}

// parts (batch, kv heads, splits, repeats, size) added up in order -> call.d_table
inline void sum_tables(const Call& call, const std::vector<float>& parts, long splits) {
    const long row = call.repeats * call.table.size, heads = call.kv_heads;
    parallel(call.threads, heads, [&](auto next) {
        std::vector<double> sum(row);
        for (long g = next(); g >= 0; g = next()) {
            std::fill(sum.begin(), sum.end(), 0.0);
            for (long b = 0; b < call.batch; ++b)
                for (long split = 0; split < splits; ++split) {
                    const float* from = &parts[((b * heads + g) * splits + split) * row];
                    for (long i = 0; i < row; ++i) sum[i] += from[i];
                }
            for (long i = 0; i < row; ++i) call.d_table[g * row + i] = (float)sum[i];
        }
    });
}

// Tiles [first, last) of one head of keys, and the keys whose gradients they make.
struct Task {
    long b, g, first, last, first_key, last_key;
};

Task split_of(const Call& call, long total, long splits, long task) {
    const long unit = task / splits, split = task % splits;
    return {unit / call.kv_heads, unit % call.kv_heads, total * split / splits,
            total * (split + 1) / splits, 0, call.num_keys};
}

// Heads come innermost: those of a token lie side by side in most tensors.
Task piece_of(const Call& call, long task) {
    const long row = task / call.kv_heads;
    const int64_t* piece = call.pieces + 2 * (row % call.num_pieces);
    return {row / call.num_pieces, task % call.kv_heads, piece[0], piece[2], piece[1], piece[3]};
}

template <class In, class P>
void backward(const Call& call) {
    const long units = call.batch * call.kv_heads, total = tiles_of(call);
    // pieces have no common key, so they need no sums of their own
    const long pieces = call.d_table ? 0 : call.num_pieces;
    const long splits = pieces ? 1 : splits_of(call, total, Sums<In, P>(call, 1).size());
    const Sums<In, P> sums(call, splits);
    const long tasks = units * (pieces ? pieces : splits);
    // where threads share the gradient of a bias, each copy is filled by a fixed list of tasks
    const long lists = call.bias_copies ? call.bias_copies : tasks;
    std::vector<float> shared(splits > 1 ? tasks * sums.size() : 0);
    const long table_size = call.d_table ? call.repeats * call.table.size : 0;
    std::vector<float> tables(tasks * table_size);
    parallel(call.threads, lists, [&](auto next) {
        Backward<In, P> tiles(call);
        std::vector<float> own(sums.in_place || splits > 1 ? 0 : sums.size());
        for (long list = next(); list >= 0; list = next()) {
            const long copy = call.bias_copies ? list : 0;
            if (call.d_bias) tiles.d_bias = call.d_bias + copy * call.bias_size;
            for (long task = list; task < tasks; task += lists) {
                const Task t = pieces ? piece_of(call, task) : split_of(call, total, splits, task);
                const long b = t.b, g = t.g, first = t.first, last = t.last;
                float* d_table = table_size ? &tables[task * table_size] : nullptr;
                if (sums.in_place) {
                    float* d_k = (float*)call.d_k.data + b * call.d_k.batch + g * call.d_k.head;
                    float* d_v = (float*)call.d_v.data + b * call.d_v.batch + g * call.d_v.head;
                    for (long key = t.first_key; key < t.last_key; ++key) {
                        memset(d_k + key * call.d_k.token, 0, call.head_dim * 4);
                        memset(d_v + key * call.d_v.token, 0, call.value_dim * 4);
                    }
                    backward_of_head(tiles, call, b, g, first, last, d_k, call.d_k.token, d_v,
                                     call.d_v.token, d_table);
                    continue;
                }
                float* d_k = splits > 1 ? &shared[task * sums.size()] : own.data();
                if (splits == 1) sums.clear(d_k, t.first_key, t.last_key);
                backward_of_head(tiles, call, b, g, first, last, d_k, sums.k_width,
                                 d_k + call.num_keys * sums.k_width, sums.v_width, d_table);
                if (splits == 1) sums.write(d_k, 1, b, g, t.first_key, t.last_key);
            }
        }
    });
    if (table_size) sum_tables(call, tables, splits);
    if (splits == 1) return;
    const long step = 256, stretches = ceil_div(call.num_keys, step);
    parallel(call.threads, units * stretches, [&](auto next) {
        for (long task = next(); task >= 0; task = next()) {
            const long unit = task / stretches, first = task % stretches * step;
            sums.write(&shared[unit * splits * sums.size()], splits, unit / call.kv_heads,
                       unit % call.kv_heads, first, std::min(first + step, (long)call.num_keys));
        }
    });
}

#ifdef __AVX512BF16__
typedef Pairs Half;
#else
typedef Float<FOVEAL_WIDTH> Half;
#endif

template <class Fn>
int guarded(Fn fn) {
    try {
        fn();
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

}  // namespace

extern "C" {

int foveal_forward(const Call* call) {
    return guarded([&]() {
        if (call->is_bfloat16)
            forward<uint16_t, Half>(*call);
        else
            forward<float, Float<FOVEAL_WIDTH>>(*call);
    });
}

int foveal_backward(const Call* call) {
    return guarded([&]() {
        if (call->is_bfloat16)
            backward<uint16_t, Half>(*call);
        else
            backward<float, Float<FOVEAL_WIDTH>>(*call);
    });
}

int foveal_step(const Stack* stack) {
    return guarded([&]() { step_stack<FOVEAL_WIDTH>(*stack); });
}

int foveal_width(void) { return FOVEAL_WIDTH; }
}
