// Window attention on CUDA cores, for every type, head size and window size that the op allows. Shapes:
//   qkv, dqkv [N,H,W,3C] and y, dy [N,H,W,C] of the storage type
//   lse [windows,heads,tokens], table [(2 side - 1)^2,heads], qkv_bias [3C] f32
//   partial [blocks,heads (2 side - 1)^2 (+ 2 C)] f32, with the 2 C columns only where the map is padded
//
// A block handles one head (blockIdx.y) of `per_block` windows (by blockIdx.x), one window after the other. A thread
// holds 32 channels of one of 64 rows in registers; if the head has more than 32 channels, two threads share a row. The
// rows of the other side (keys for a query, queries for a key) go through shared memory 32 at a time, and all threads
// read the same one at the same time.
//
// Forward: one query per row, with an online softmax (running maximum and sum of its scores).
// Backward: first one query per row for dq, then one key per row for dk and dv. The scores are computed in both passes:
// the probabilities of a whole window in shared memory would leave room for only one block on a multiprocessor.
// qkv, y and dy are read once from memory; the repeated reads hit the cache.
//
// Gradient of the table: at a given key, the queries of a warp belong to different table entries. Each warp therefore
// adds to its own copy of the table, key by key, without atomics. Copies, blocks and padded tokens are summed in a
// fixed order: deterministic.
#include "common/reduce.cuh"
#include "common/windows.cuh"

constexpr uint32_t ROWS = 64, STREAM = 32;
// Layout of a tile in shared memory. ROWS: rows that the block's threads own; STREAM: rows of the other side that are
// loaded at a time. PART: floats that 32 channels take, 4 of them padding; ROW<S>: floats of a row of S * 32 channels.
// Thread t's own channels begin at float 36 t, so 8 neighbouring threads, and the two halves of a row, access different
// banks.
constexpr uint32_t PART = 36;
template <int S> constexpr uint32_t ROW = PART * S;

// Loads `rows` tokens of the window, beginning with token `first`, into a tile of f32. The map has `stride` elements
// per pixel, and the head's channels begin at element `column`. A padded token becomes `pad`, rounded to T as if it had
// been stored, or 0 if `pad` is null. Rows past the last token and channels past the head's last become 0. All threads
// of the block call it: neighbouring threads read neighbouring 16-byte vectors of a row (or elements, if a head's
// channels are not a multiple of a vector).
template <typename T, int S>
__device__ __forceinline__ void load_tile(float* to, const T* map, uint32_t stride, uint32_t column, const float* pad, const int32_t* pixel,
                                          uint32_t first, uint32_t rows, const WindowAttentionParams& p) {
    const uint32_t tokens = tokens_of(p);
    const auto source = [&](uint32_t r) { return first + r < tokens ? pixel[first + r] : -1; };
    if (p.d % VEC<T> == 0) {
        constexpr uint32_t V = VEC<T>, VECTORS = 32 * S / V;
        for (uint32_t i = threadIdx.x; i < rows * VECTORS; i += blockDim.x) {
            const uint32_t r = i / VECTORS, c = i % VECTORS * V;
            float* const out = to + r * ROW<S> + c / 32 * PART + c % 32;
            float v[V] = {};
            const int32_t at = source(r);
            if (c < p.d && at >= 0) {
                const Vec<T> x = load_vec(map + int64_t(at) * stride + column + c);
                for (uint32_t k = 0; k < V; k++) v[k] = load(x.v[k]);
            } else if (c < p.d && pad && first + r < tokens) {
                for (uint32_t k = 0; k < V; k++) v[k] = load(store<T>(pad[column + c + k]));
            }
            for (uint32_t k = 0; k < V; k += 4) store_pack(out + k, Pack<float, 4>{{v[k], v[k + 1], v[k + 2], v[k + 3]}});
        }
    } else {
        for (uint32_t i = threadIdx.x; i < rows * 32 * S; i += blockDim.x) {
            const uint32_t r = i / (32 * S), c = i % (32 * S);
            const int32_t at = source(r);
            float v = 0.0f;
            if (c < p.d && at >= 0) v = load(map[int64_t(at) * stride + column + c]);
            else if (c < p.d && pad && first + r < tokens) v = load(store<T>(pad[column + c]));
            to[r * ROW<S> + c / 32 * PART + c % 32] = v;
        }
    }
}

// Writes a tile's rows to the map, rounded to T; rows of padded tokens are skipped. Threads are assigned as in
// load_tile. All threads of the block call it.
template <typename T, int S>
__device__ __forceinline__ void store_tile(T* map, uint32_t stride, uint32_t column, const float* tile, const int32_t* pixel,
                                           uint32_t first, const WindowAttentionParams& p) {
    const uint32_t rows = min(ROWS, tokens_of(p) - first);
    if (p.d % VEC<T> == 0) {
        constexpr uint32_t V = VEC<T>, VECTORS = 32 * S / V;
        for (uint32_t i = threadIdx.x; i < rows * VECTORS; i += blockDim.x) {
            const uint32_t r = i / VECTORS, c = i % VECTORS * V;
            const int32_t at = pixel[first + r];
            if (at < 0 || c >= p.d) continue;
            const float* const x = tile + r * ROW<S> + c / 32 * PART + c % 32;
            Vec<T> v;
            for (uint32_t k = 0; k < V; k++) v.v[k] = store<T>(x[k]);
            store_vec(map + int64_t(at) * stride + column + c, v);
        }
    } else {
        for (uint32_t i = threadIdx.x; i < rows * 32 * S; i += blockDim.x) {
            const uint32_t r = i / (32 * S), c = i % (32 * S);
            const int32_t at = pixel[first + r];
            if (at >= 0 && c < p.d) map[int64_t(at) * stride + column + c] = store<T>(tile[r * ROW<S> + c / 32 * PART + c % 32]);
        }
    }
}

// A thread's 32 channels: read_row loads them to registers and write_row stores them, both times `factor`; dot_row is
// their dot product with a row in shared memory; add_row adds `factor` times such a row to them.
__device__ __forceinline__ void read_row(float (&x)[32], const float* from, float factor) {
#pragma unroll
    for (int k = 0; k < 32; k += 4) {
        const Pack<float, 4> v = load_pack<4>(from + k);
#pragma unroll
        for (int i = 0; i < 4; i++) x[k + i] = v.v[i] * factor;
    }
}
__device__ __forceinline__ void write_row(float* to, const float (&x)[32], float factor) {
#pragma unroll
    for (int k = 0; k < 32; k += 4) {
        store_pack(to + k, Pack<float, 4>{{x[k] * factor, x[k + 1] * factor, x[k + 2] * factor, x[k + 3] * factor}});
    }
}
__device__ __forceinline__ float dot_row(const float (&x)[32], const float* row) {
    float sum[4] = {};
#pragma unroll
    for (int k = 0; k < 32; k += 4) {
        const Pack<float, 4> v = load_pack<4>(row + k);
#pragma unroll
        for (int i = 0; i < 4; i++) sum[i] = fmaf(x[k + i], v.v[i], sum[i]);
    }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}
__device__ __forceinline__ void add_row(float (&x)[32], float factor, const float* row) {
#pragma unroll
    for (int k = 0; k < 32; k += 4) {
        const Pack<float, 4> v = load_pack<4>(row + k);
#pragma unroll
        for (int i = 0; i < 4; i++) x[k + i] = fmaf(factor, v.v[i], x[k + i]);
    }
}
// Sum over the S threads that share a row; they are neighbouring lanes.
template <int S> __device__ __forceinline__ float join(float v) { return S == 1 ? v : v + __shfl_xor_sync(FULL_WARP, v, 1); }

// block (x, y)  per_block windows from x * per_block on, one by one; head y   they share one column of the table
// thread t      query row t / S of 64, channels t % S * 32 .. + 32            query, output, maximum, sum in registers
//               keys in ascending order, four at a time                       all rows read one key: a broadcast
template <typename T, int S>
__device__ __forceinline__ void window_attention_fwd(T* y, float* lse, const T* qkv, const float* qkv_bias, const float* table,
                                                     const WindowAttentionParams& p) {
    DYNAMIC_SHARED(float, shared);
    const uint32_t tokens = tokens_of(p), head = blockIdx.y, row = threadIdx.x / S, part = threadIdx.x % S * PART;
    float *const tile = shared, *const bias = tile + ROWS * ROW<S>;
    int32_t *const pixel = reinterpret_cast<int32_t*>(bias + entries_of(p)), *const tag = pixel + tokens;
    const uint32_t q = head * p.d, k = q + p.c, v = k + p.c, stride = 3 * p.c;
    float *const mine = tile + row * ROW<S> + part, *const values = tile + STREAM * ROW<S>;
    fill_table(bias, table, head, p);
    const uint32_t end = min(p.windows, (blockIdx.x + 1) * p.per_block);
    for (uint32_t window = blockIdx.x * p.per_block; window < end; window++) {
        __syncthreads();
        fill_tokens(pixel, tag, window, tokens, p);
        __syncthreads();
        for (uint32_t q0 = 0; q0 < tokens; q0 += ROWS) {
            load_tile<T, S>(tile, qkv, stride, q, qkv_bias, pixel, q0, ROWS, p);
            __syncthreads();
            float x[32], o[32] = {}, most = -INFINITY, sum = 0.0f;
            read_row(x, mine, p.scale * LOG2_E);
            const bool there = q0 + row < tokens;
            const int32_t own = there ? tag[q0 + row] : 0;
            for (uint32_t k0 = 0; k0 < tokens; k0 += STREAM) {
                __syncthreads();
                load_tile<T, S>(tile, qkv, stride, k, qkv_bias, pixel, k0, STREAM, p);
                load_tile<T, S>(values, qkv, stride, v, qkv_bias, pixel, k0, STREAM, p);
                __syncthreads();
                const uint32_t count = min(STREAM, tokens - k0);
#pragma unroll 1
                for (uint32_t j = 0; j < count; j += 4) {
                    float s[4], larger = most;
#pragma unroll
                    for (uint32_t u = 0; u < 4; u++) {
                        s[u] = join<S>(dot_row(x, tile + (j + u) * ROW<S> + part));
                        s[u] = j + u < count ? s[u] + bias_of(bias, own, tag[k0 + j + u], p) : -INFINITY;
                        larger = fmaxf(larger, s[u]);
                    }
                    if (larger > most) {
                        const float factor = exp2f(most - larger);
#pragma unroll
                        for (int i = 0; i < 32; i++) o[i] *= factor;
                        sum *= factor;
                        most = larger;
                    }
#pragma unroll
                    for (uint32_t u = 0; u < 4; u++) {
                        s[u] = exp2f(s[u] - most);
                        sum += s[u];
                        add_row(o, s[u], values + (j + u) * ROW<S> + part);
                    }
                }
            }
            __syncthreads();
            write_row(mine, o, 1.0f / sum);
            if (lse && there && part == 0) lse[(int64_t(window) * p.heads + head) * tokens + q0 + row] = (most + log2f(sum)) * LN_2;
            __syncthreads();
            store_tile<T, S>(y, p.c, q, tile, pixel, q0, p);
            __syncthreads();
        }
    }
}

// thread t, first pass   query row t / S of 64; keys in order     dq in registers, ds to the warp's copy of the table
// thread t, second pass  key row t / S of 64; queries in order    dk and dv in registers
//                        channels t % S * 32 .. + 32 in both      one owner per row of dq, dk and dv: no atomics
template <typename T, int S>
__device__ __forceinline__ void window_attention_bwd(T* dqkv, float* partial, const T* dy, const T* qkv, const T* y, const float* lse,
                                                     const float* qkv_bias, const float* table, const WindowAttentionParams& p) {
    DYNAMIC_SHARED(float, shared);
    constexpr uint32_t WARPS = ROWS * S / WARP;
    const uint32_t tokens = tokens_of(p), entries = entries_of(p), head = blockIdx.y;
    const uint32_t row = threadIdx.x / S, part = threadIdx.x % S * PART;
    float *const tile = shared, *const bias = tile + ROWS * ROW<S>, *const sums = bias + entries;
    float *const log_sum = sums + WARPS * entries, *const mean = log_sum + tokens;
    int32_t *const pixel = reinterpret_cast<int32_t*>(mean + tokens), *const tag = pixel + tokens;
    const uint32_t q = head * p.d, k = q + p.c, v = k + p.c, stride = 3 * p.c;
    float *const mine = tile + row * ROW<S> + part, *const second = tile + STREAM * ROW<S>, *const own_sums = sums + warp_id() * entries;
    fill_table(bias, table, head, p);
    for (uint32_t e = threadIdx.x; e < WARPS * entries; e += blockDim.x) sums[e] = 0.0f;
    float padded_k = 0.0f, padded_v = 0.0f;  // gradients of channel threadIdx.x, summed over padded tokens
    // Adds the padded tokens' rows of channel threadIdx.x to `sum`. The tile holds gradients of k or of v.
    const auto of_padded = [&](float sum, uint32_t first) {
        if (has_padding(p) && threadIdx.x < p.d) {
            const float* const column = tile + threadIdx.x / 32 * PART + threadIdx.x % 32;
            for (uint32_t r = 0; r < ROWS && first + r < tokens; r++)
                if (pixel[first + r] < 0) sum += column[r * ROW<S>];
        }
        return sum;
    };
    const uint32_t end = min(p.windows, (blockIdx.x + 1) * p.per_block);
    for (uint32_t window = blockIdx.x * p.per_block; window < end; window++) {
        __syncthreads();
        fill_tokens(pixel, tag, window, tokens, p);
        for (uint32_t t = threadIdx.x; t < tokens; t += blockDim.x)
            log_sum[t] = lse[(int64_t(window) * p.heads + head) * tokens + t] * LOG2_E;
        __syncthreads();
        for (uint32_t q0 = 0; q0 < tokens; q0 += ROWS) {  // first pass: one query per row
            float x[32], g[32], dx[32];
            load_tile<T, S>(tile, qkv, stride, q, qkv_bias, pixel, q0, ROWS, p);
            __syncthreads();
            read_row(x, mine, p.scale * LOG2_E);
            __syncthreads();
            load_tile<T, S>(tile, dy, p.c, q, nullptr, pixel, q0, ROWS, p);
            __syncthreads();
            read_row(g, mine, 1.0f);
            __syncthreads();
            load_tile<T, S>(tile, y, p.c, q, nullptr, pixel, q0, ROWS, p);
            __syncthreads();
            const bool there = q0 + row < tokens;
            const float dot = join<S>(dot_row(g, mine));  // dy y equals the sum of p * dp over the keys
            const float denominator = there ? log_sum[q0 + row] : 0.0f;
            const int32_t own = there ? tag[q0 + row] : 0;
            if (there && part == 0) mean[q0 + row] = dot;
#pragma unroll
            for (int i = 0; i < 32; i++) dx[i] = 0.0f;
            for (uint32_t k0 = 0; k0 < tokens; k0 += STREAM) {
                __syncthreads();
                load_tile<T, S>(tile, qkv, stride, k, qkv_bias, pixel, k0, STREAM, p);
                load_tile<T, S>(second, qkv, stride, v, qkv_bias, pixel, k0, STREAM, p);
                __syncthreads();
                const uint32_t count = min(STREAM, tokens - k0);
#pragma unroll 1
                for (uint32_t j = 0; j < count; j++) {
                    const float s = join<S>(dot_row(x, tile + j * ROW<S> + part)), dp = join<S>(dot_row(g, second + j * ROW<S> + part));
                    const int32_t other = tag[k0 + j];
                    const float ds = exp2f(s + bias_of(bias, own, other, p) - denominator) * (dp - dot);
                    add_row(dx, ds, tile + j * ROW<S> + part);
                    if (there && part == 0) own_sums[entry(own, other, p)] += ds;
                    __syncwarp();  // at the next key, other lanes add to the same entries
                }
            }
            __syncthreads();
            write_row(mine, dx, p.scale);
            __syncthreads();
            store_tile<T, S>(dqkv, stride, q, tile, pixel, q0, p);
            __syncthreads();
        }
        for (uint32_t k0 = 0; k0 < tokens; k0 += ROWS) {  // second pass: one key per row
            float x[32], z[32], dx[32], dz[32];
            load_tile<T, S>(tile, qkv, stride, k, qkv_bias, pixel, k0, ROWS, p);
            __syncthreads();
            read_row(x, mine, p.scale * LOG2_E);
            __syncthreads();
            load_tile<T, S>(tile, qkv, stride, v, qkv_bias, pixel, k0, ROWS, p);
            __syncthreads();
            read_row(z, mine, 1.0f);
            const int32_t own = k0 + row < tokens ? tag[k0 + row] : 0;
#pragma unroll
            for (int i = 0; i < 32; i++) dx[i] = dz[i] = 0.0f;
            for (uint32_t q0 = 0; q0 < tokens; q0 += STREAM) {
                __syncthreads();
                load_tile<T, S>(tile, qkv, stride, q, qkv_bias, pixel, q0, STREAM, p);
                load_tile<T, S>(second, dy, p.c, q, nullptr, pixel, q0, STREAM, p);
                __syncthreads();
                const uint32_t count = min(STREAM, tokens - q0);
#pragma unroll 1
                for (uint32_t i = 0; i < count; i++) {
                    const float s = join<S>(dot_row(x, tile + i * ROW<S> + part)), dp = join<S>(dot_row(z, second + i * ROW<S> + part));
                    const float prob = exp2f(s + bias_of(bias, tag[q0 + i], own, p) - log_sum[q0 + i]);
                    add_row(dz, prob, second + i * ROW<S> + part);
                    add_row(dx, prob * (dp - mean[q0 + i]), tile + i * ROW<S> + part);
                }
            }
            __syncthreads();
            write_row(mine, dx, p.scale);
            __syncthreads();
            store_tile<T, S>(dqkv, stride, k, tile, pixel, k0, p);
            padded_k = of_padded(padded_k, k0);
            __syncthreads();
            write_row(mine, dz, 1.0f);
            __syncthreads();
            store_tile<T, S>(dqkv, stride, v, tile, pixel, k0, p);
            padded_v = of_padded(padded_v, k0);
            __syncthreads();
        }
    }
    __syncthreads();
    float* const out = partial + blockIdx.x * partial_columns(p);
    for (uint32_t e = threadIdx.x; e < entries; e += blockDim.x) {
        float sum = 0.0f;
        for (uint32_t i = 0; i < WARPS; i++) sum += sums[i * entries + e];
        out[head * entries + e] = sum;
    }
    if (has_padding(p) && threadIdx.x < p.d) {
        float* const padded = out + p.heads * entries + q + threadIdx.x;
        padded[0] = padded_k;
        padded[p.c] = padded_v;
    }
}

#define KERNELS_OF(T, TYPE, S, D)                                                                                               \
    KERNEL(ROWS * S, window_attention_fwd_d##D##_##TYPE,                                                                        \
           (T * y, float* lse, const T* qkv, const float* qkv_bias, const float* table, WindowAttentionParams p)) {             \
        window_attention_fwd<T, S>(y, lse, qkv, qkv_bias, table, p);                                                            \
    }                                                                                                                           \
    KERNEL(ROWS * S, window_attention_bwd_d##D##_##TYPE,                                                                        \
           (T * dqkv, float* partial, const T* dy, const T* qkv, const T* y, const float* lse, const float* qkv_bias,           \
            const float* table, WindowAttentionParams p)) {                                                                     \
        window_attention_bwd<T, S>(dqkv, partial, dy, qkv, y, lse, qkv_bias, table, p);                                         \
    }
#define KERNELS(T, TYPE) KERNELS_OF(T, TYPE, 1, 32) KERNELS_OF(T, TYPE, 2, 64)
FOR_FLOATS(KERNELS)

struct WindowAttentionFoldParams {
    uint32_t blocks, columns;        // shape of partial
    uint32_t first, count;           // the columns to fold
    uint32_t rows, heads, offset;    // where they go: see the kernel
    uint32_t accumulate;
};
static_assert(sizeof(WindowAttentionFoldParams) == 32, "mirror of src/ops/window_attention/cuda.rs");

// Sums columns first .. first + count of partial [blocks,columns]. Column first + i goes to element offset + i % rows *
// heads + i / rows of out. The elements of out before offset become 0, or stay as they are if it accumulates.
// thread t of block b   column b * 32 + t % 32             neighbouring lanes read neighbouring columns
//                       rows t / 32, t / 32 + 8, ...       one warp per eighth row of partial
//                       then warp 0 adds the 8 sums of its column in order: a fixed order of sums
KERNEL(256, window_attention_fold_f32, (float* out, const float* partial, WindowAttentionFoldParams p)) {
    SHARED(float, scratch, 256);
    const uint32_t i = blockIdx.x * 32 + threadIdx.x % 32, lane = threadIdx.x / 32;
    float sum = 0.0f;
    if (i < p.count)
        for (uint32_t block = lane; block < p.blocks; block += 8) sum += partial[int64_t(block) * p.columns + p.first + i];
    scratch[threadIdx.x] = sum;
    __syncthreads();
    if (lane == 0 && i < p.count) {
        for (uint32_t k = 1; k < 8; k++) sum += scratch[k * 32 + threadIdx.x];
        float* const to = out + p.offset + i % p.rows * p.heads + i / p.rows;
        *to = p.accumulate ? *to + sum : sum;
    }
    if (!p.accumulate)
        for (uint32_t k = blockIdx.x * 256 + threadIdx.x; k < p.offset; k += gridDim.x * 256) out[k] = 0.0f;
}
