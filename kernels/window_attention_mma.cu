// Window attention on tensor cores, for windows of up to 64 tokens and heads with a multiple of 8 channels.
// window_attention.cu handles everything else; shapes and partial sums are the same. T is f16 or bf16. Scores,
// probabilities and sums are f32; they are rounded to T where they enter a product as a factor.
//
// A block of four warps handles one head (blockIdx.y) of `per_block` windows (by blockIdx.x), one window after the
// other. All tokens of the window are in shared memory, padded to 64. A warp owns 16 queries and keeps their scores in
// registers: the result of one product has the layout that the next product needs for its factor A.
// Backward: a warp owns 16 queries for dq, then 16 keys for dk and dv; the second pass computes the scores once more.
// The gradient of the table stays in registers, one sum for each pair of tokens, over all windows of the block.
// One pass over memory. All sums have a fixed order: deterministic.
#include "common/mma.cuh"
#include "common/windows.cuh"

constexpr uint32_t THREADS = 128, TOKENS = 64, MAX_ENTRIES = 15 * 15;

// Elements of a tile's row: H * 16 channels, and 8 of padding so that the rows of a fragment fall on different banks.
template <int H> constexpr int LD = H * 16 + 8;
template <int H> constexpr uint32_t TILE = TOKENS * LD<H>;

// A block's view of its window: shared memory filled by fill_table and fill_tokens, the head, and the number of tokens.
struct Place {
    float* table;
    int32_t *pixel, *tag;
    uint32_t head, tokens;
};

// Loads all tokens of the window into a tile. The map has `stride` elements per pixel, and the head's channels begin at
// element `column`. A padded token becomes `pad`, rounded to T as if it had been stored, or 0 if `pad` is null. Rows
// past the last token and channels past the head's last become 0. All threads of the block call it: neighbouring
// threads read neighbouring 16-byte vectors of a row.
template <typename T, int H>
__device__ __forceinline__ void load_tile(T* to, const T* map, uint32_t stride, uint32_t column, const float* pad, const Place& place,
                                          const WindowAttentionParams& p) {
    for (uint32_t i = threadIdx.x; i < TOKENS * 2 * H; i += THREADS) {
        const uint32_t t = i / (2 * H), c = i % (2 * H) * 8;
        const int32_t at = place.pixel[t];
        Vec<T> v;
        if (c < p.d && at >= 0) {
            v = load_vec(map + int64_t(at) * stride + column + c);
        } else {
            const bool padded = c < p.d && pad && t < place.tokens;
            for (uint32_t k = 0; k < 8; k++) v.v[k] = store<T>(padded ? pad[column + c + k] : 0.0f);
        }
        store_vec(to + t * LD<H> + c, v);
    }
}

// Writes rows `first` .. `first` + `rows` of a tile to the map; rows of padded tokens are skipped. `threads` threads
// share the work, and the caller is number `thread` of them.
template <typename T, int H>
__device__ __forceinline__ void store_tile(T* map, uint32_t stride, uint32_t column, const T* tile, uint32_t first, uint32_t rows,
                                           uint32_t thread, uint32_t threads, const Place& place, const WindowAttentionParams& p) {
    for (uint32_t i = thread; i < rows * 2 * H; i += threads) {
        const uint32_t t = first + i / (2 * H), c = i % (2 * H) * 8;
        const int32_t at = place.pixel[t];
        if (c < p.d && at >= 0) store_vec(map + int64_t(at) * stride + column + c, load_vec(tile + t * LD<H> + c));
    }
}

// Stores a warp's 16 rows, beginning with row `first`, to a tile. factor[0] scales a lane's upper row, factor[1] its
// lower one.
template <typename T, int H>
__device__ __forceinline__ void store_rows(T* tile, uint32_t first, const MmaD (&d)[2 * H], const float (&factor)[2]) {
#pragma unroll
    for (int n = 0; n < 2 * H; n++) {
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
            const Pack<T, 2> v = {{store<T>(d[n].v[i] * factor[i / 2]), store<T>(d[n].v[i + 1] * factor[i / 2])}};
            store_pack(tile + (first + mma_row(i)) * LD<H> + n * 8 + mma_column(i), v);
        }
    }
}

// d = a b^T, summed over the channels: a is 16 rows in fragments (load_rows), b is 8 rows of a tile.
template <typename T, int H> __device__ __forceinline__ void scores(MmaD& d, const MmaA<T> (&a)[H], const T* rows) {
#pragma unroll
    for (int i = 0; i < 4; i++) d.v[i] = 0.0f;
#pragma unroll
    for (int h = 0; h < H; h++) mma(d, a[h], mma_load_b(rows + h * 16, LD<H>));
}
template <typename T, int H> __device__ __forceinline__ void load_rows(MmaA<T> (&a)[H], const T* rows) {
#pragma unroll
    for (int h = 0; h < H; h++) a[h] = mma_load_a(rows + h * 16, LD<H>);
}
// d += a b, summed over 16 tokens: a is a fragment of 16 columns, b is 16 rows of a tile, d has the tile's channels.
template <typename T, int H> __device__ __forceinline__ void combine(MmaD (&d)[2 * H], const MmaA<T>& a, const T* rows) {
#pragma unroll
    for (int n = 0; n < 2 * H; n++) mma(d[n], a, mma_load_b_rows(rows + n * 8, LD<H>));
}
template <int N> __device__ __forceinline__ void clear(MmaD (&d)[N]) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) d[n].v[i] = 0.0f;
}

// warp w   queries 16 w .. 16 w + 15, all keys: 8 products of [16,8] scores   scores never leave the registers
// lane l   rows l / 4 and l / 4 + 8, two columns of each product              4 lanes share a row: 2 shuffles reduce it
//          two products of probabilities are one A for the product with v     then the warp writes its 16 rows of y
template <typename T, int H>
__device__ __forceinline__ void window_attention_mma_fwd(T* y, float* lse, const T* qkv, const float* qkv_bias, const float* table,
                                                         const WindowAttentionParams& p) {
    SHARED(uint4, raw, 3 * TILE<H> / 8);
    SHARED(float, bias, MAX_ENTRIES);
    SHARED(int32_t, pixel, TOKENS);
    SHARED(int32_t, tag, TOKENS);
    const Place place = {bias, pixel, tag, blockIdx.y, tokens_of(p)};
    T *const q = reinterpret_cast<T*>(raw), *const k = q + TILE<H>, *const v = k + TILE<H>;
    const uint32_t column = place.head * p.d, stride = 3 * p.c, first = warp_id() * 16;
    const float scale = p.scale * LOG2_E;
    fill_table(bias, table, place.head, p);
    const uint32_t end = min(p.windows, (blockIdx.x + 1) * p.per_block);
    for (uint32_t window = blockIdx.x * p.per_block; window < end; window++) {
        __syncthreads();
        fill_tokens(pixel, tag, window, TOKENS, p);
        __syncthreads();
        load_tile<T, H>(q, qkv, stride, column, qkv_bias, place, p);
        load_tile<T, H>(k, qkv, stride, column + p.c, qkv_bias, place, p);
        load_tile<T, H>(v, qkv, stride, column + 2 * p.c, qkv_bias, place, p);
        __syncthreads();
        if (first >= place.tokens) continue;  // the whole warp: the next barrier is that of the next window, if any
        MmaA<T> a[H];
        load_rows<T, H>(a, q + first * LD<H>);
        MmaD s[8], o[2 * H];
        float most[2] = {-INFINITY, -INFINITY}, sum[2] = {}, factor[2];
        const int32_t own[2] = {tag[first + mma_row(0)], tag[first + mma_row(2)]};
#pragma unroll
        for (int n = 0; n < 8; n++) {
            if (n * 8 < int(place.tokens)) scores<T, H>(s[n], a, k + n * 8 * LD<H>);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint32_t j = n * 8 + mma_column(i);
                s[n].v[i] = j < place.tokens ? fmaf(s[n].v[i], scale, bias_of(bias, own[i / 2], tag[j], p)) : -INFINITY;
                most[i / 2] = fmaxf(most[i / 2], s[n].v[i]);
            }
        }
#pragma unroll
        for (int r = 0; r < 2; r++)
            for (int d = 1; d < 4; d *= 2) most[r] = fmaxf(most[r], __shfl_xor_sync(FULL_WARP, most[r], d));
#pragma unroll
        for (int n = 0; n < 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[n].v[i] = exp2f(s[n].v[i] - most[i / 2]);
                sum[i / 2] += s[n].v[i];
            }
        }
#pragma unroll
        for (int r = 0; r < 2; r++) {
            for (int d = 1; d < 4; d *= 2) sum[r] += __shfl_xor_sync(FULL_WARP, sum[r], d);
            factor[r] = 1.0f / sum[r];
            const uint32_t row = first + mma_row(2 * r);
            if (lse && mma_column(0) == 0 && row < place.tokens)
                lse[(int64_t(window) * p.heads + place.head) * place.tokens + row] = (most[r] + log2f(sum[r])) * LN_2;
        }
        clear(o);
#pragma unroll
        for (int m = 0; m < 4; m++)
            if (m * 16 < int(place.tokens)) combine<T, H>(o, mma_a_of<T>(s[2 * m], s[2 * m + 1]), v + m * 16 * LD<H>);
        store_rows<T, H>(q, first, o, factor);  // only this warp reads these rows of q
        __syncwarp();
        store_tile<T, H>(y, p.c, column, q, first, 16, lane_id(), WARP, place, p);
    }
}

// Softmax backward for one pair: p = exp(score - lse) replaces the product `s`, and ds = p (dp - mean) replaces `dp`.
__device__ __forceinline__ void gradient(float& s, float& dp, float scale, float bias, float log_sum, float mean) {
    s = exp2f(fmaf(s, scale, bias) - log_sum);
    dp = s * (dp - mean);
}

// warp w, first pass    queries 16 w .. 16 w + 15, all keys   dq, and each pair's ds summed over windows, in registers
// warp w, second pass   keys 16 w .. 16 w + 15, all queries   dk, dv in registers: one owner per row, no atomics
// thread t, at the end  table entries t, t + 128, ...         adds the pairs of the entry, from shared memory, in order
template <typename T, int H>
__device__ __forceinline__ void window_attention_mma_bwd(T* dqkv, float* partial, const T* dy, const T* qkv, const T* y, const float* lse,
                                                         const float* qkv_bias, const float* table, const WindowAttentionParams& p) {
    constexpr uint32_t PAIRS = TOKENS + 1;  // floats per query in the table of pairs; 1 is padding
    static_assert(4 * TILE<2> * 2 >= TOKENS * PAIRS * 4, "the sums over pairs take the tiles' place");
    SHARED(uint4, raw, 4 * TILE<H> / 8);
    SHARED(float, bias, MAX_ENTRIES);
    SHARED(float, log_sum, TOKENS);
    SHARED(float, mean, TOKENS);
    SHARED(int32_t, pixel, TOKENS);
    SHARED(int32_t, tag, TOKENS);
    const Place place = {bias, pixel, tag, blockIdx.y, tokens_of(p)};
    T *const q = reinterpret_cast<T*>(raw), *const k = q + TILE<H>, *const v = k + TILE<H>, *const g = v + TILE<H>;
    const uint32_t column = place.head * p.d, stride = 3 * p.c, first = warp_id() * 16;
    const float scale = p.scale * LOG2_E;
    fill_table(bias, table, place.head, p);
    MmaD pairs[8];  // gradient of the score of each (query, key) pair, summed over windows
    clear(pairs);
    float padded_k = 0.0f, padded_v = 0.0f;  // gradients of channel threadIdx.x, summed over padded tokens
    const uint32_t end = min(p.windows, (blockIdx.x + 1) * p.per_block);
    for (uint32_t window = blockIdx.x * p.per_block; window < end; window++) {
        __syncthreads();
        fill_tokens(pixel, tag, window, TOKENS, p);
        // Past the last token, INFINITY makes every probability 0.
        for (uint32_t t = threadIdx.x; t < TOKENS; t += THREADS)
            log_sum[t] = t < place.tokens ? lse[(int64_t(window) * p.heads + place.head) * place.tokens + t] * LOG2_E : INFINITY;
        __syncthreads();
        load_tile<T, H>(q, qkv, stride, column, qkv_bias, place, p);
        load_tile<T, H>(k, qkv, stride, column + p.c, qkv_bias, place, p);
        load_tile<T, H>(v, qkv, stride, column + 2 * p.c, qkv_bias, place, p);
        load_tile<T, H>(g, dy, p.c, column, nullptr, place, p);
        __syncthreads();
        {  // The mean of dp under p equals dy y (dot product over channels). Two threads share a row.
            const uint32_t t = threadIdx.x / 2;
            float dot = 0.0f;
            for (uint32_t c = threadIdx.x % 2 * 8; c < p.d && pixel[t] >= 0; c += 16) {
                const Vec<T> a = load_vec(g + t * LD<H> + c), b = load_vec(y + int64_t(pixel[t]) * p.c + column + c);
#pragma unroll
                for (int i = 0; i < 8; i++) dot = fmaf(load(a.v[i]), load(b.v[i]), dot);
            }
            dot += __shfl_xor_sync(FULL_WARP, dot, 1);
            if (threadIdx.x % 2 == 0) mean[t] = dot;
        }
        __syncthreads();
        MmaD dq[2 * H], dk[2 * H], dv[2 * H];
        if (first < place.tokens) {
            const int32_t own[2] = {tag[first + mma_row(0)], tag[first + mma_row(2)]};
            {  // first pass: 16 queries
                MmaA<T> a[H], ga[H];
                load_rows<T, H>(a, q + first * LD<H>);
                load_rows<T, H>(ga, g + first * LD<H>);
                const float ls[2] = {log_sum[first + mma_row(0)], log_sum[first + mma_row(2)]};
                const float me[2] = {mean[first + mma_row(0)], mean[first + mma_row(2)]};
                clear(dq);
#pragma unroll
                for (int m = 0; m < 4; m++) {
                    if (m * 16 >= int(place.tokens)) continue;
                    MmaD s[2], ds[2];
#pragma unroll
                    for (int n = 0; n < 2; n++) {
                        scores<T, H>(s[n], a, k + (m * 16 + n * 8) * LD<H>);
                        scores<T, H>(ds[n], ga, v + (m * 16 + n * 8) * LD<H>);
#pragma unroll
                        for (int i = 0; i < 4; i++) {
                            const uint32_t j = m * 16 + n * 8 + mma_column(i);
                            gradient(s[n].v[i], ds[n].v[i], scale, bias_of(bias, own[i / 2], tag[j], p), ls[i / 2], me[i / 2]);
                            if (j >= place.tokens) ds[n].v[i] = 0.0f;
                            pairs[2 * m + n].v[i] += ds[n].v[i];
                        }
                    }
                    combine<T, H>(dq, mma_a_of<T>(ds[0], ds[1]), k + m * 16 * LD<H>);
                }
            }
            {  // second pass: 16 keys
                MmaA<T> a[H], va[H];
                load_rows<T, H>(a, k + first * LD<H>);
                load_rows<T, H>(va, v + first * LD<H>);
                clear(dk);
                clear(dv);
#pragma unroll 1
                for (int m = 0; m < int(place.tokens); m += 16) {
                    MmaD s[2], ds[2];
#pragma unroll
                    for (int n = 0; n < 2; n++) {
                        scores<T, H>(s[n], a, q + (m + n * 8) * LD<H>);
                        scores<T, H>(ds[n], va, g + (m + n * 8) * LD<H>);
#pragma unroll
                        for (int i = 0; i < 4; i++) {
                            const uint32_t j = m + n * 8 + mma_column(i);
                            gradient(s[n].v[i], ds[n].v[i], scale, bias_of(bias, tag[j], own[i / 2], p), log_sum[j], mean[j]);
                        }
                    }
                    combine<T, H>(dv, mma_a_of<T>(s[0], s[1]), g + m * LD<H>);
                    combine<T, H>(dk, mma_a_of<T>(ds[0], ds[1]), q + m * LD<H>);
                }
            }
        }
        __syncthreads();  // all warps have read q, k and v: their tiles now take the gradients
        if (first < place.tokens) {
            const float one[2] = {1.0f, 1.0f}, scaled[2] = {p.scale, p.scale};
            store_rows<T, H>(q, first, dq, scaled);
            store_rows<T, H>(k, first, dk, scaled);
            store_rows<T, H>(v, first, dv, one);
        }
        __syncthreads();
        store_tile<T, H>(dqkv, stride, column, q, 0, place.tokens, threadIdx.x, THREADS, place, p);
        store_tile<T, H>(dqkv, stride, column + p.c, k, 0, place.tokens, threadIdx.x, THREADS, place, p);
        store_tile<T, H>(dqkv, stride, column + 2 * p.c, v, 0, place.tokens, threadIdx.x, THREADS, place, p);
        if (has_padding(p) && threadIdx.x < p.d) {
            for (uint32_t t = 0; t < place.tokens; t++) {
                if (pixel[t] >= 0) continue;
                padded_k += load(k[t * LD<H> + threadIdx.x]);
                padded_v += load(v[t * LD<H> + threadIdx.x]);
            }
        }
    }
    __syncthreads();
    float* const sums = reinterpret_cast<float*>(raw);
#pragma unroll
    for (int n = 0; n < 8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) sums[(first + mma_row(i)) * PAIRS + n * 8 + mma_column(i)] = pairs[n].v[i];
    __syncthreads();
    float* const out = partial + blockIdx.x * partial_columns(p);
    const int side = int(p.side), wide = 2 * side - 1;
    for (uint32_t e = threadIdx.x; e < entries_of(p); e += THREADS) {
        const int down = int(e) / wide - (side - 1), right = int(e) % wide - (side - 1);  // query minus key
        float sum = 0.0f;
        for (int a = max(0, down); a < min(side, side + down); a++) {
            for (int b = max(0, right); b < min(side, side + right); b++)
                sum += sums[(a * side + b) * int(PAIRS) + (a - down) * side + b - right];
        }
        out[place.head * entries_of(p) + e] = sum;
    }
    if (has_padding(p) && threadIdx.x < p.d) {
        float* const padded = out + p.heads * entries_of(p) + column + threadIdx.x;
        padded[0] = padded_k;
        padded[p.c] = padded_v;
    }
}

#define KERNELS_OF(T, TYPE, H, D)                                                                                               \
    KERNEL(THREADS, window_attention_mma_fwd_d##D##_##TYPE,                                                                     \
           (T * y, float* lse, const T* qkv, const float* qkv_bias, const float* table, WindowAttentionParams p)) {             \
        window_attention_mma_fwd<T, H>(y, lse, qkv, qkv_bias, table, p);                                                        \
    }                                                                                                                           \
    KERNEL(THREADS, window_attention_mma_bwd_d##D##_##TYPE,                                                                     \
           (T * dqkv, float* partial, const T* dy, const T* qkv, const T* y, const float* lse, const float* qkv_bias,           \
            const float* table, WindowAttentionParams p)) {                                                                     \
        window_attention_mma_bwd<T, H>(dqkv, partial, dy, qkv, y, lse, qkv_bias, table, p);                                     \
    }
#define KERNELS(T, TYPE) KERNELS_OF(T, TYPE, 2, 32) KERNELS_OF(T, TYPE, 4, 64)
KERNELS(f16, f16)
KERNELS(bf16, bf16)
