// Output layer that computes only the selected class: y[r,m] = x[r,m,:] . w[label[r],:] + b[label[r]].
// x, dx [R,M,C] T; y, dy [R,M] f32; w [K,C], b [K] f32; label [R] i32. A label outside 0..K gives y = 0 and dx = 0 and
// adds nothing to dw and db.
//
// Forward and dx: a block has 32 rows of one r, a warp four of them, and a lane one 16-byte vector of channels (or one
// channel, if C is not a multiple of a vector). One pass: x is read once, or dx written once; w comes from cache.
// dw and db: a block sums a chunk of the rows of one r, 32 vectors of channels by 8 rows at a time. Then one block per
// class and 32 columns adds the chunks of its class in a fixed order. Deterministic.
#include "common/reduce.cuh"

struct SelectLinearParams {
    uint32_t r, m, c, k, chunks, rows_per_chunk;
};
static_assert(sizeof(SelectLinearParams) == 24, "mirror of src/ops/select_linear/cuda.rs");

constexpr int ROWS = 4;   // rows per warp, forward and dx
constexpr int WARPS = 8;  // warps per block

// warp w of block (r, y)   rows (8 y + w) * 4 .. + 4 of r        a vector of weights is loaded once for four rows
// lane l                   channels l * V, (l + 32) * V, ...     neighbouring lanes read neighbouring vectors
//                          shuffles add the 32 partial sums of each row; lane i writes row i
template <typename T, int V>
__device__ void select_linear_fwd(float* y, const T* x, const float* w, const float* b, const int32_t* label, SelectLinearParams p) {
    const uint32_t r = blockIdx.x, first = (blockIdx.y * WARPS + warp_id()) * ROWS;
    const uint32_t k = uint32_t(label[r]);  // a negative label becomes a large number
    if (first >= p.m) return;
    const int rows = int(min(p.m - first, uint32_t(ROWS)));
    float* const out = y + int64_t(r) * p.m + first;
    if (k >= p.k) {
        if (lane_id() < rows) out[lane_id()] = 0.0f;
        return;
    }
    const T* const from = x + (int64_t(r) * p.m + first) * p.c;
    const float* const weight = w + int64_t(k) * p.c;
    float sum[ROWS] = {};
    for (uint32_t c = lane_id() * V; c < p.c; c += WARP * V) {
        const Pack<float, V> wv = load_pack<V>(weight + c);
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            if (i >= rows) continue;
            const Pack<T, V> xv = load_pack<V>(from + int64_t(i) * p.c + c);
#pragma unroll
            for (int v = 0; v < V; v++) sum[i] = fmaf(load(xv.v[v]), wv.v[v], sum[i]);
        }
    }
    const float bias = b[k];
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        const float total = warp_reduce(sum[i], Sum()) + bias;
        if (lane_id() == i && i < rows) out[i] = total;
    }
}

// warp and lane as in select_linear_fwd: four rows, and vectors of channels l, l + 32, ...; each lane writes dx where
// forward reads x. No sum crosses lanes: dx[r,m,c] = dy[r,m] * w[label[r],c].
template <typename T, int V>
__device__ void select_linear_bwd_dx(T* dx, const float* dy, const float* w, const int32_t* label, SelectLinearParams p) {
    const uint32_t r = blockIdx.x, first = (blockIdx.y * WARPS + warp_id()) * ROWS;
    const uint32_t k = uint32_t(label[r]);
    if (first >= p.m) return;
    const int rows = int(min(p.m - first, uint32_t(ROWS)));
    T* const to = dx + (int64_t(r) * p.m + first) * p.c;
    const bool counts = k < p.k;
    const float* const weight = w + int64_t(counts ? k : 0) * p.c;
    float g[ROWS];
#pragma unroll
    for (int i = 0; i < ROWS; i++) g[i] = counts && i < rows ? dy[int64_t(r) * p.m + first + i] : 0.0f;
    for (uint32_t c = lane_id() * V; c < p.c; c += WARP * V) {
        Pack<float, V> wv = {};
        if (counts) wv = load_pack<V>(weight + c);
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
            if (i >= rows) continue;
            Pack<T, V> out;
#pragma unroll
            for (int v = 0; v < V; v++) out.v[v] = store<T>(g[i] * wv.v[v]);
            store_pack(to + int64_t(i) * p.c + c, out);
        }
    }
}

// block (x, y)   r = x / chunks, chunk x % chunks of its rows; 32 vectors of channels from 32 y on
// warp w, lane l rows w, w + 8, ... of the chunk; vector 32 y + l       neighbouring lanes read neighbouring vectors
//                then warp 0 adds the 8 warps' sums in order: no atomics; the blocks with y = 0 do the same for db
template <typename T, int V>
__device__ void select_linear_bwd_dw(float* w_sums, float* b_sums, const float* dy, const T* x, const int32_t* label,
                                     SelectLinearParams p) {
    SHARED(float, sums, WARPS * WARP * VEC<T>);
    SHARED(float, b_scratch, WARPS);
    const uint32_t r = blockIdx.x / p.chunks;
    if (uint32_t(label[r]) >= p.k) return;  // the whole block returns; the fold does not read its sums
    const uint32_t first = blockIdx.x % p.chunks * p.rows_per_chunk, end = min(first + p.rows_per_chunk, p.m);
    const uint32_t c = (blockIdx.y * WARP + lane_id()) * V;
    const int64_t row0 = int64_t(r) * p.m;
    float sum[V] = {}, b_sum = 0.0f;
#pragma unroll 4
    for (uint32_t m = first + warp_id(); m < end; m += WARPS) {
        const float g = dy[row0 + m];
        b_sum += g;
        if (c >= p.c) continue;
        const Pack<T, V> xv = load_pack<V>(x + (row0 + m) * p.c + c);
#pragma unroll
        for (int v = 0; v < V; v++) sum[v] = fmaf(g, load(xv.v[v]), sum[v]);
    }
#pragma unroll
    for (int v = 0; v < V; v++) sums[v * WARPS * WARP + threadIdx.x] = sum[v];
    if (lane_id() == 0) b_scratch[warp_id()] = b_sum;
    __syncthreads();
    if (warp_id() == 0 && c < p.c) {
        Pack<float, V> out;
#pragma unroll
        for (int v = 0; v < V; v++) {
            out.v[v] = sum[v];
#pragma unroll
            for (int i = 1; i < WARPS; i++) out.v[v] += sums[(v * WARPS + i) * WARP + lane_id()];
        }
        store_pack(w_sums + int64_t(blockIdx.x) * p.c + c, out);
    }
    if (blockIdx.y == 0 && threadIdx.x == 0) {
#pragma unroll
        for (int i = 1; i < WARPS; i++) b_sum += b_scratch[i];
        b_sums[blockIdx.x] = b_sum;
    }
}

#define KERNELS(T, S)                                                                                                             \
    KERNEL(256, select_linear_fwd_##S, (float* y, const T* x, const float* w, const float* b, const int32_t* label,               \
                                        SelectLinearParams p)) {                                                                  \
        if (p.c % VEC<T> == 0) select_linear_fwd<T, VEC<T>>(y, x, w, b, label, p);                                                \
        else select_linear_fwd<T, 1>(y, x, w, b, label, p);                                                                       \
    }                                                                                                                             \
    KERNEL(256, select_linear_bwd_dx_##S, (T * dx, const float* dy, const float* w, const int32_t* label, SelectLinearParams p)) { \
        if (p.c % VEC<T> == 0) select_linear_bwd_dx<T, VEC<T>>(dx, dy, w, label, p);                                              \
        else select_linear_bwd_dx<T, 1>(dx, dy, w, label, p);                                                                     \
    }                                                                                                                             \
    KERNEL(256, select_linear_bwd_dw_##S, (float* w_sums, float* b_sums, const float* dy, const T* x, const int32_t* label,       \
                                           SelectLinearParams p)) {                                                               \
        if (p.c % VEC<T> == 0) select_linear_bwd_dw<T, VEC<T>>(w_sums, b_sums, dy, x, label, p);                                  \
        else select_linear_bwd_dw<T, 1>(w_sums, b_sums, dy, x, label, p);                                                         \
    }
FOR_FLOATS(KERNELS)

struct SelectFoldParams {
    uint32_t r, chunks, columns, accumulate;
};
static_assert(sizeof(SelectFoldParams) == 16, "mirror of src/ops/select_linear/cuda.rs");

// Adds the chunks' sums of one class.
// block (x, y)     class x; 32 columns from 32 y on
// warp w, lane l   r = w, w + 8, ... if label[r] is x; column 32 y + l     neighbouring lanes read neighbouring columns
//                  then warp 0 adds the 8 warps' sums in order: one owner per output, a fixed order of sums
KERNEL(256, select_linear_fold_f32, (float* d, const float* sums, const int32_t* label, SelectFoldParams p)) {
    SHARED(float, scratch, WARPS * WARP);
    const uint32_t column = blockIdx.y * WARP + lane_id();
    float sum = 0.0f;
    for (uint32_t r = warp_id(); r < p.r && column < p.columns; r += WARPS) {
        if (label[r] != int32_t(blockIdx.x)) continue;
#pragma unroll 4
        for (uint32_t i = r * p.chunks; i < (r + 1) * p.chunks; i++) sum += sums[int64_t(i) * p.columns + column];
    }
    scratch[threadIdx.x] = sum;
    __syncthreads();
    if (warp_id() == 0 && column < p.columns) {
#pragma unroll
        for (int i = 1; i < WARPS; i++) sum += scratch[i * WARP + lane_id()];
        float* const out = d + int64_t(blockIdx.x) * p.columns + column;
        *out = p.accumulate ? *out + sum : sum;
    }
}
