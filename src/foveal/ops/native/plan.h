// What the caller passes: the tile plan, strided tensors and options. Plain C, shared with
// foveal/ops/native/abi.py, which must list the same fields in the same order.

#ifndef FOVEAL_PLAN_H
#define FOVEAL_PLAN_H

#include <cstdint>

extern "C" {

// Token positions: tile t, item i is tiles[t] + items[t * item_step + i].
struct Places {
    const int64_t* tiles;
    const int64_t* items;
    int64_t item_step;  // 0: all tiles share their item offsets
    int64_t count;      // items in a tile
};

// Blocks of keys that every tile names for itself, chosen at run time: see attend_selected.
struct Selection {
    const int64_t* blocks;  // (batch, kv_heads, tiles, count), below 0: none; or null
    int64_t count, unit;    // entries of a list; from one (batch, kv head) to the next
    int64_t size;           // keys in a block
    int64_t causal, first, per_token;  // query q stands at token first + q / per_token
};

// Tiles of one shape. mask: one bit a query, (tiles or 1, ceil(tile_q / 64), tile_k); bits beyond
// tile_q may be any.
struct Group {
    int64_t num_tiles, tile_q, tile_k;
    Places queries;
    const Places* keys;
    int64_t num_parts;  // places of keys that lie side by side
    const uint64_t* mask;
    int64_t mask_step;              // from one tile to the next; 0: all tiles share the mask
    const int64_t* window_rows;     // (tile_k) row of each key in the window of a WindowBias
    const int64_t* window_columns;  // (tile_k)
    Selection selection;            // in place of tile_k, keys and mask
};

// (batch, heads, tokens, features) with unit stride in the features; strides in elements.
struct Matrix {
    void* data;
    int64_t batch, head, token;
};

// Added to the logits: strides of 0 where it is broadcast.
struct Bias {
    const float* data;
    int64_t batch, head, query, key;
};

// A number for each offset, times log2(e): the logit of a pair of head h gains
// data[h * head + query[q] - key[k]], an index from 0 to size - 1 for all pairs in tiles. A whole
// vector may be read from each index on.
struct Table {
    const float* data;
    int64_t head;
    const int64_t *query, *key;  // (queries), (keys)
    int64_t size;
};

struct Call {
    // what every call has
    int64_t batch, kv_heads, repeats, num_queries, num_keys, head_dim, value_dim;
    const Group* groups;
    int64_t num_groups, threads, is_bfloat16;
    Matrix q, k, v, out;
    float* lse;  // (batch, heads, queries)
    double scale, dropout_p;
    const uint64_t* seeds;
    int64_t seed_step;  // 1: a seed for each of the batch; 0: one
    double softcap;     // 0: none
    // Tiles in the order of the row, where documents share it: (all tiles, 2) group and tile; or
    // null: group by group. Pieces of the order that have no key in common: (pieces + 1, 2) first
    // tile and first key.
    const int64_t *order, *pieces;
    int64_t num_pieces;
    // what few have, or zeros
    Matrix rows, columns;  // float: the parts of a WindowBias
    int64_t window_height, window_width;
    Bias bias;
    const uint8_t* key_mask;  // (batch, keys): 1 = real key
    const float* sinks;       // (heads) a logit each, or null
    int64_t lse_batch, lse_head;  // from one row of lse to the next; 0: num_queries
    Table table;
    // backward only
    Matrix d_out;
    const float* d_lse;
    Matrix d_q, d_k, d_v, d_rows, d_columns;
    float* d_bias;        // strides as bias; `bias_copies` of them, summed by the caller
    int64_t bias_copies;  // 0: no two (batch, kv head) share a place of the bias
    int64_t bias_size;
    float* delta;    // (batch, heads, queries) what the gradient of sinks is made of, or null
    float* d_table;  // (heads, table.size), of data before it was multiplied
};

// A linear layer, weight (out, in), or a LayerNorm; what it lacks is null.
struct Affine {
    const float *weight, *bias;
    double eps;
};

// A pre-norm block, and its cache: head h, place t at h * head_step + t * head_dim.
struct Layer {
    Affine attn_norm, to_qkv, to_out, ff_norm, to_hidden, ff_out;
    float *keys, *values;
    int64_t head_step, place, held;  // the new token's place; places in use, it included
};

struct Stack {
    const Layer* layers;
    int64_t num_layers, dim, heads, kv_heads, head_dim, hidden;
    const float* angles;  // cosines and signed sines (2, head_dim), or null
    float* x;             // (dim) in and out
};

// All return 0, or 1 when memory runs out.
int foveal_forward(const Call* call);
int foveal_backward(const Call* call);
int foveal_step(const Stack* stack);
int foveal_width(void);  // floats in a vector
}

#endif
