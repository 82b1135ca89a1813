"""The kernels of impl="triton". Importing this module needs Triton, so only calls import it.

Letters name the sides of tiles in registers, all powers of two:
M queries of one block; R rows and C columns of a window, with R * C keys; H x W pixels of keys;
D features of queries and keys; E features of values.
A tensor comes as a pointer with its strides over batch, heads and tokens; features are contiguous.
"""

from __future__ import annotations

import triton
import triton.language as tl

# the softmax runs in base 2, which is what the hardware computes
LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


# -- where things are ---------------------------------------------------------------------------


@triton.jit
def _queries(
    block_y,
    block_x,
    chunk,
    query_width,
    num_queries,
    QUERY_H: tl.constexpr,
    QUERY_W: tl.constexpr,
    M: tl.constexpr,
):
    """Positions (M) of M queries of a block, and which of them exist."""
    item = chunk * M + tl.arange(0, M)
    column = block_x * QUERY_W + item % QUERY_W
    index = (block_y * QUERY_H + item // QUERY_W) * query_width + column
    exists = (item < QUERY_H * QUERY_W) & (column < query_width) & (index < num_queries)
    return index.to(tl.int64), exists


@triton.jit
def _window_keys(
    first_row,
    top,
    left,
    width,
    num_keys,
    key_mask,
    WINDOW_H: tl.constexpr,
    WINDOW_W: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
):
    """Positions (R * C) of the keys in R rows of a window, and which of them may be read."""
    item = tl.arange(0, R * C)
    row, column = first_row + item // C, item % C
    y, x = top + row, left + column
    index = (y * width + x).to(tl.int64)
    exists = (row < WINDOW_H) & (column < WINDOW_W) & (y >= 0) & (x >= 0) & (x < width)
    exists = exists & (index < num_keys)
    if key_mask is not None:
        exists = exists & (tl.load(key_mask + index, mask=exists, other=0) != 0)
    return index, exists


@triton.jit
def _load(base, index, exists, stride, dim, PADDED: tl.constexpr):
    """Tokens of one head: (tokens, PADDED), zero where a token or a feature does not exist."""
    feature = tl.arange(0, PADDED)
    there = exists[:, None] & (feature < dim)[None, :]
    return tl.load(base + index[:, None] * stride + feature[None, :], mask=there, other=0.0)


@triton.jit
def _store(base, index, exists, stride, dim, values, PADDED: tl.constexpr):
    """The reverse of `_load`."""
    feature = tl.arange(0, PADDED)
    there = exists[:, None] & (feature < dim)[None, :]
    places = base + index[:, None] * stride + feature[None, :]
    tl.store(places, values.to(base.dtype.element_ty), mask=there)


@triton.jit
def _load_bias(base, index, exists, stride, place, size):
    """Logits (queries, places) of places in the window, in base 2."""
    there = exists[:, None] & (place >= 0)[None, :] & (place < size)[None, :]
    values = tl.load(base + index[:, None] * stride + place[None, :], mask=there, other=0.0)
    return values.to(tl.float32) * LOG2_E


@triton.jit
def _logits(products, scale, softcap):
    """Products of queries and keys -> logits in base 2, within the soft-cap if there is one."""
    if softcap is None:
        logits = products * (scale * LOG2_E)
    else:
        tanh = 1.0 - 2.0 / (tl.exp2(products * (2.0 * LOG2_E * scale / softcap)) + 1.0)
        logits = tanh * (softcap * LOG2_E)
    return logits


@triton.jit
def _before_cap(d_logits, logits, softcap):
    """Gradients of what `_logits` gave, as it gave it -> those of scaled products."""
    if softcap is not None:
        tanh = logits / (softcap * LOG2_E)
        d_logits = d_logits * (1.0 - tanh * tanh)
    return d_logits


# -- forward ------------------------------------------------------------------------------------


@triton.jit
def forward_kernel(
    q, q_b, q_h, q_n,
    k, k_b, k_h, k_n,
    v, v_b, v_h, v_n,
    rows, rows_b, rows_h, rows_n,
    columns, columns_b, columns_h, columns_n,
    out, out_b, out_h, out_n,
    lse, key_mask,
    scale, softcap, heads, repeats, num_queries, num_keys, query_width, width, blocks_x, tiles,
    QUERY_H: tl.constexpr, QUERY_W: tl.constexpr, STRIDE: tl.constexpr,
    HALO_H: tl.constexpr, HALO_W: tl.constexpr,
    DIM: tl.constexpr, DIM_V: tl.constexpr,
    M: tl.constexpr, R: tl.constexpr, C: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """out and lse of M queries of one block and head."""
    WINDOW_H: tl.constexpr = QUERY_H * STRIDE + 2 * HALO_H
    WINDOW_W: tl.constexpr = QUERY_W * STRIDE + 2 * HALO_W
    CHUNKS: tl.constexpr = (QUERY_H * QUERY_W + M - 1) // M
    program = tl.program_id(0)
    tile, head = program % tiles, program // tiles % heads
    batch = (program // tiles // heads).to(tl.int64)
    block_y, block_x = tile // CHUNKS // blocks_x, tile // CHUNKS % blocks_x
    top, left = block_y * QUERY_H * STRIDE - HALO_H, block_x * QUERY_W * STRIDE - HALO_W
    q += batch * q_b + head * q_h
    k += batch * k_b + head // repeats * k_h
    v += batch * v_b + head // repeats * v_h
    if key_mask is not None:
        key_mask += batch * num_keys
    at, real = _queries(
        block_y, block_x, tile % CHUNKS, query_width, num_queries, QUERY_H, QUERY_W, M
    )

    queries = _load(q, at, real, q_n, DIM, D)
    if rows is not None:
        rows += batch * rows_b + head * rows_h
        columns += batch * columns_b + head * columns_h
        across = _load_bias(columns, at, real, columns_n, tl.arange(0, C), WINDOW_W)
    top_logit = tl.full((M,), -float("inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    values = tl.zeros((M, E), tl.float32)
    for row in range(0, WINDOW_H, R):
        key_at, key_real = _window_keys(
            row, top, left, width, num_keys, key_mask, WINDOW_H, WINDOW_W, R, C
        )
        keys = _load(k, key_at, key_real, k_n, DIM, D)
        products = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        logits = _logits(products, scale, softcap)
        if rows is not None:
            down = _load_bias(rows, at, real, rows_n, row + tl.arange(0, R), WINDOW_H)
            logits += tl.reshape(down[:, :, None] + across[:, None, :], (M, R * C))
        logits = tl.where(key_real[None, :], logits, -float("inf"))
        new_top = tl.maximum(top_logit, tl.max(logits, 1))
        shift = tl.where(new_top == -float("inf"), 0.0, new_top)  # no key so far
        weights = tl.exp2(logits - shift[:, None])
        fade = tl.exp2(top_logit - shift)
        total = total * fade + tl.sum(weights, 1)
        tokens = _load(v, key_at, key_real, v_n, DIM_V, E)
        values = values * fade[:, None]
        values += tl.dot(weights.to(tokens.dtype), tokens, input_precision=PRECISION)
        top_logit = new_top

    dead = top_logit == -float("inf")
    total = tl.where(dead, 1.0, total)
    values = values / total[:, None]
    out += batch * out_b + head * out_h
    _store(out, at, real, out_n, DIM_V, values, E)
    log_sum = tl.where(dead, top_logit, (top_logit + tl.log2(total)) / LOG2_E)
    tl.store(lse + (batch * heads + head) * num_queries + at, log_sum, mask=real)


# -- backward -----------------------------------------------------------------------------------


@triton.jit
def _log_sum(lse, at, real):
    """In base 2, and +inf for a query without keys, so that its weights are zero."""
    found = tl.load(lse + at, mask=real, other=-float("inf"))
    return tl.where(found == -float("inf"), float("inf"), found * LOG2_E)


@triton.jit
def query_gradient_kernel(
    q, q_b, q_h, q_n,
    k, k_b, k_h, k_n,
    v, v_b, v_h, v_n,
    rows, rows_b, rows_h, rows_n,
    columns, columns_b, columns_h, columns_n,
    out, out_b, out_h, out_n,
    d_out, d_out_b, d_out_h, d_out_n,
    d_q, d_q_b, d_q_h, d_q_n,
    d_rows, d_rows_b, d_rows_h, d_rows_n,
    d_columns, d_columns_b, d_columns_h, d_columns_n,
    lse, d_lse, delta, key_mask,
    scale, softcap, heads, repeats, num_queries, num_keys, query_width, width, blocks_x, tiles,
    QUERY_H: tl.constexpr, QUERY_W: tl.constexpr, STRIDE: tl.constexpr,
    HALO_H: tl.constexpr, HALO_W: tl.constexpr,
    DIM: tl.constexpr, DIM_V: tl.constexpr,
    M: tl.constexpr, R: tl.constexpr, C: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """d_q, d_rows, d_columns of M queries of one block and head; delta for the keys' kernel."""
    WINDOW_H: tl.constexpr = QUERY_H * STRIDE + 2 * HALO_H
    WINDOW_W: tl.constexpr = QUERY_W * STRIDE + 2 * HALO_W
    CHUNKS: tl.constexpr = (QUERY_H * QUERY_W + M - 1) // M
    program = tl.program_id(0)
    tile, head = program % tiles, program // tiles % heads
    batch = (program // tiles // heads).to(tl.int64)
    block_y, block_x = tile // CHUNKS // blocks_x, tile // CHUNKS % blocks_x
    top, left = block_y * QUERY_H * STRIDE - HALO_H, block_x * QUERY_W * STRIDE - HALO_W
    k += batch * k_b + head // repeats * k_h
    v += batch * v_b + head // repeats * v_h
    if key_mask is not None:
        key_mask += batch * num_keys
    at, real = _queries(
        block_y, block_x, tile % CHUNKS, query_width, num_queries, QUERY_H, QUERY_W, M
    )

    queries = _load(q + batch * q_b + head * q_h, at, real, q_n, DIM, D)
    if rows is not None:
        rows += batch * rows_b + head * rows_h
        columns += batch * columns_b + head * columns_h
        d_rows += batch * d_rows_b + head * d_rows_h
        d_columns += batch * d_columns_b + head * d_columns_h
        across = _load_bias(columns, at, real, columns_n, tl.arange(0, C), WINDOW_W)
    result = _load(out + batch * out_b + head * out_h, at, real, out_n, DIM_V, E)
    d_result = _load(d_out + batch * d_out_b + head * d_out_h, at, real, d_out_n, DIM_V, E)
    line = (batch * heads + head) * num_queries
    log_sum = _log_sum(lse + line, at, real)
    shift = tl.sum(result.to(tl.float32) * d_result.to(tl.float32), 1)
    shift -= tl.load(d_lse + line + at, mask=real, other=0.0)
    shift = tl.where(log_sum == float("inf"), 0.0, shift)
    tl.store(delta + line + at, shift, mask=real)

    gradient = tl.zeros((M, D), tl.float32)
    d_across = tl.zeros((M, C), tl.float32)
    for row in range(0, WINDOW_H, R):
        key_at, key_real = _window_keys(
            row, top, left, width, num_keys, key_mask, WINDOW_H, WINDOW_W, R, C
        )
        keys = _load(k, key_at, key_real, k_n, DIM, D)
        products = tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
        logits = _logits(products, scale, softcap)
        capped = logits
        if rows is not None:
            down = _load_bias(rows, at, real, rows_n, row + tl.arange(0, R), WINDOW_H)
            logits += tl.reshape(down[:, :, None] + across[:, None, :], (M, R * C))
        logits = tl.where(key_real[None, :], logits, -float("inf"))
        weights = tl.exp2(logits - log_sum[:, None])
        tokens = _load(v, key_at, key_real, v_n, DIM_V, E)
        d_weights = tl.dot(d_result, tl.trans(tokens), input_precision=PRECISION)
        d_logits = weights * (d_weights - shift[:, None])
        d_products = _before_cap(d_logits, capped, softcap)
        gradient += tl.dot(d_products.to(keys.dtype), keys, input_precision=PRECISION)
        if rows is not None:
            window = tl.reshape(d_logits, (M, R, C))
            d_across += tl.sum(window, 1)
            _store(d_rows + row, at, real, d_rows_n, WINDOW_H - row, tl.sum(window, 2), R)

    _store(d_q + batch * d_q_b + head * d_q_h, at, real, d_q_n, DIM, gradient * scale, D)
    if rows is not None:
        _store(d_columns, at, real, d_columns_n, WINDOW_W, d_across, C)


@triton.jit
def key_gradient_kernel(
    q, q_b, q_h, q_n,
    k, k_b, k_h, k_n,
    v, v_b, v_h, v_n,
    rows, rows_b, rows_h, rows_n,
    columns, columns_b, columns_h, columns_n,
    d_out, d_out_b, d_out_h, d_out_n,
    d_k, d_k_b, d_k_h, d_k_n,
    d_v, d_v_b, d_v_h, d_v_n,
    lse, delta, key_mask,
    scale, softcap, heads, repeats, num_queries, num_keys, query_width, width, blocks_y, blocks_x,
    tiles, tiles_x,
    QUERY_H: tl.constexpr, QUERY_W: tl.constexpr, STRIDE: tl.constexpr,
    HALO_H: tl.constexpr, HALO_W: tl.constexpr,
    DIM: tl.constexpr, DIM_V: tl.constexpr,
    M: tl.constexpr, H: tl.constexpr, W: tl.constexpr, D: tl.constexpr, E: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """d_k, d_v of H x W pixels of one key head, gathered from every block whose window has them.

    No two programs write one number, so there are no atomics and two runs give the same bits.
    """
    BLOCK_H: tl.constexpr = QUERY_H * STRIDE
    BLOCK_W: tl.constexpr = QUERY_W * STRIDE
    CHUNKS: tl.constexpr = (QUERY_H * QUERY_W + M - 1) // M
    program = tl.program_id(0)
    key_heads = heads // repeats
    tile, key_head = program % tiles, program // tiles % key_heads
    batch = (program // tiles // key_heads).to(tl.int64)
    first_y, first_x = tile // tiles_x * H, tile % tiles_x * W
    y, x = first_y + tl.arange(0, H), first_x + tl.arange(0, W)
    item = tl.arange(0, H * W)
    key_y, key_x = first_y + item // W, first_x + item % W
    at = (key_y * width + key_x).to(tl.int64)
    real = (key_x < width) & (at < num_keys)
    readable = real
    if key_mask is not None:
        readable = real & (tl.load(key_mask + batch * num_keys + at, mask=real, other=0) != 0)
    keys = _load(k + batch * k_b + key_head * k_h, at, real, k_n, DIM, D)
    tokens = _load(v + batch * v_b + key_head * v_h, at, real, v_n, DIM_V, E)

    # blocks whose windows meet the pixels
    low_y = tl.maximum(first_y - HALO_H, 0) // BLOCK_H
    low_x = tl.maximum(first_x - HALO_W, 0) // BLOCK_W
    count_y = tl.minimum((first_y + H - 1 + HALO_H) // BLOCK_H + 1, blocks_y) - low_y
    count_x = tl.minimum((first_x + W - 1 + HALO_W) // BLOCK_W + 1, blocks_x) - low_x
    d_keys = tl.zeros((H * W, D), tl.float32)
    d_tokens = tl.zeros((H * W, E), tl.float32)
    for step in range(repeats * count_y * count_x * CHUNKS):
        block = step // CHUNKS
        head = key_head * repeats + block // (count_y * count_x)
        block_y, block_x = low_y + block // count_x % count_y, low_x + block % count_x
        top, left = block_y * BLOCK_H - HALO_H, block_x * BLOCK_W - HALO_W
        query_at, query_real = _queries(
            block_y, block_x, step % CHUNKS, query_width, num_queries, QUERY_H, QUERY_W, M
        )
        queries = _load(q + batch * q_b + head * q_h, query_at, query_real, q_n, DIM, D)
        products = tl.dot(keys, tl.trans(queries), input_precision=PRECISION)
        logits = _logits(products, scale, softcap)
        capped = logits
        if rows is not None:
            down = _load_bias_transposed(
                rows + batch * rows_b + head * rows_h,
                query_at, query_real, rows_n, y - top, BLOCK_H + 2 * HALO_H,
            )  # fmt: skip
            across = _load_bias_transposed(
                columns + batch * columns_b + head * columns_h,
                query_at, query_real, columns_n, x - left, BLOCK_W + 2 * HALO_W,
            )  # fmt: skip
            logits += tl.reshape(down[:, None, :] + across[None, :, :], (H * W, M))
        inside = (key_y >= top) & (key_y < top + BLOCK_H + 2 * HALO_H)
        inside = inside & (key_x >= left) & (key_x < left + BLOCK_W + 2 * HALO_W)
        logits = tl.where((inside & readable)[:, None], logits, -float("inf"))
        line = (batch * heads + head) * num_queries
        weights = tl.exp2(logits - _log_sum(lse + line, query_at, query_real)[None, :])
        d_result = _load(
            d_out + batch * d_out_b + head * d_out_h, query_at, query_real, d_out_n, DIM_V, E
        )
        d_tokens += tl.dot(weights.to(d_result.dtype), d_result, input_precision=PRECISION)
        d_weights = tl.dot(tokens, tl.trans(d_result), input_precision=PRECISION)
        shift = tl.load(delta + line + query_at, mask=query_real, other=0.0)
        d_logits = weights * (d_weights - shift[None, :])
        d_logits = _before_cap(d_logits, capped, softcap)
        d_keys += tl.dot(d_logits.to(queries.dtype), queries, input_precision=PRECISION)

    _store(d_k + batch * d_k_b + key_head * d_k_h, at, real, d_k_n, DIM, d_keys * scale, D)
    _store(d_v + batch * d_v_b + key_head * d_v_h, at, real, d_v_n, DIM_V, d_tokens, E)


@triton.jit
def _load_bias_transposed(base, index, exists, stride, place, size):
    """Logits (places, queries); see `_load_bias`."""
    there = exists[None, :] & (place >= 0)[:, None] & (place < size)[:, None]
    values = tl.load(base + index[None, :] * stride + place[:, None], mask=there, other=0.0)
    return values.to(tl.float32) * LOG2_E
