// Layer norm over rows. x, y, dy, dx [M,C] T; gamma, beta [C], stats [2,M] (mean, 1 / sqrt(variance + eps)) f32; without dy it is in dx.
// fwd and bwd_dx: `lanes` threads a row (a warp at most), each with 16-byte vectors of it (or one channel, where C fills no vector). The
// first vectors of a row stay in registers, so that memory is read once up to 1024 channels of f32 (bwd_dx: 512); longer rows
// come from the cache again. The variance is that of the deviations from the mean.
// bwd_dparams reads dy and x once more: a block sums a chunk of rows of its columns into partial [chunks,2,C], bwd_fold adds the chunks.
// All sums in a fixed order: deterministic.
#include "common/reduce.cuh"

struct LayerNormParams {
    int64_t m;
    uint32_t c;
    uint32_t lanes;   // of a row: a power of two
    uint32_t chunk;   // rows of a block of bwd_dparams
    uint32_t chunks;  // how many
    float eps;
    uint32_t unused;
};
static_assert(sizeof(LayerNormParams) == 32, "mirror of src/ops/layer_norm/cuda.rs");

constexpr int ROW_THREADS = 128;
constexpr int SUM_THREADS = 256;

// Vectors of a row in a thread's registers.
constexpr int HELD_FWD = 8;
constexpr int HELD_BWD = 4;

// Over the lanes of a row; all lanes of the warp call it.
__device__ __forceinline__ float row_sum(float v, uint32_t lanes) {
    for (uint32_t d = lanes / 2; d > 0; d /= 2) v += __shfl_xor_sync(FULL_WARP, v, int(d));
    return v;
}

// Which row a thread works on, and as which of its lanes. Behind the last row threads compute the last one again, without writing:
// its warp's shuffles need them.
struct Place {
    int64_t row;
    uint32_t lane;
    bool live;
};

__device__ __forceinline__ Place place_of(const LayerNormParams& p) {
    const int64_t row = int64_t(blockIdx.x) * (blockDim.x / p.lanes) + threadIdx.x / p.lanes;
    return {row < p.m ? row : p.m - 1, threadIdx.x % p.lanes, row < p.m};
}

// Calls `f(i, vector)` for this lane's vectors of a row, K of them from `held`, which is read from memory first if `Fill`.
template <bool Fill, typename T, int V, int K, typename F>
__device__ __forceinline__ void over_row(Pack<T, V> (&held)[K], const T* row, uint32_t vectors, uint32_t lanes, uint32_t lane, F f) {
#pragma unroll
    for (int k = 0; k < K; k++) {
        const uint32_t i = lane + k * lanes;
        if (i >= vectors) continue;
        if (Fill) held[k] = load_pack<V>(row + int64_t(i) * V);
        f(i, held[k]);
    }
    for (uint32_t i = lane + K * lanes; i < vectors; i += lanes) f(i, load_pack<V>(row + int64_t(i) * V));
}

template <typename T, int V, int K>
__device__ __forceinline__ void fwd(T* y, float* stats, const T* x, const float* gamma, const float* beta, const LayerNormParams& p) {
    const Place at = place_of(p);
    const uint32_t vectors = p.c / V;
    const T* row = x + at.row * p.c;
    Pack<T, V> held[K];
    float sum = 0.0f;
    over_row<true>(held, row, vectors, p.lanes, at.lane, [&](uint32_t, const Pack<T, V>& in) {
#pragma unroll
        for (int v = 0; v < V; v++) sum += load(in.v[v]);
    });
    // Deviations from the mean as rounded: their own mean, which should be 0, makes up for what the first sum lost.
    const float c = float(p.c), near = row_sum(sum, p.lanes) / c;
    float dev = 0.0f, dev2 = 0.0f;
    over_row<false>(held, row, vectors, p.lanes, at.lane, [&](uint32_t, const Pack<T, V>& in) {
#pragma unroll
        for (int v = 0; v < V; v++) {
            const float d = load(in.v[v]) - near;
            dev += d;
            dev2 = fmaf(d, d, dev2);
        }
    });
    const float away = row_sum(dev, p.lanes) / c, square = row_sum(dev2, p.lanes) / c - away * away;
    const float var = square < 0.0f ? 0.0f : square;  // NaN stays
    const float mean = near + away, rstd = 1.0f / sqrtf(var + p.eps);
    if (!at.live) return;
    if (at.lane == 0) {
        stats[at.row] = mean;
        stats[p.m + at.row] = rstd;
    }
    T* out_row = y + at.row * p.c;
    over_row<false>(held, row, vectors, p.lanes, at.lane, [&](uint32_t i, const Pack<T, V>& in) {
        const Pack<float, V> g = load_pack<V>(gamma + i * V), b = load_pack<V>(beta + i * V);
        Pack<T, V> out;
#pragma unroll
        for (int v = 0; v < V; v++) out.v[v] = store<T>(fmaf((load(in.v[v]) - mean) * rstd, g.v[v], b.v[v]));
        store_pack(out_row + int64_t(i) * V, out);
    });
}

// dx = rstd (g - mean(g) - v mean(g v)), g = dy gamma, v = (x - mean) rstd. A lane has read a vector of dy before it writes over it.
template <typename T, int V, int K>
__device__ __forceinline__ void bwd_dx(T* dx, const T* dy, const T* x, const float* gamma, const float* stats, const LayerNormParams& p) {
    const Place at = place_of(p);
    const uint32_t vectors = p.c / V;
    const T* row = x + at.row * p.c;
    const T* dy_row = dy + at.row * p.c;
    const float mean = stats[at.row], rstd = stats[p.m + at.row];
    Pack<T, V> held[K], held_dy[K];
    float total = 0.0f, along = 0.0f;
    const auto add = [&](uint32_t i, const Pack<T, V>& in, const Pack<T, V>& in_dy) {
        const Pack<float, V> g = load_pack<V>(gamma + i * V);
#pragma unroll
        for (int v = 0; v < V; v++) {
            const float dg = load(in_dy.v[v]) * g.v[v];
            total += dg;
            along = fmaf(dg, (load(in.v[v]) - mean) * rstd, along);
        }
    };
#pragma unroll
    for (int k = 0; k < K; k++) {
        const uint32_t i = at.lane + k * p.lanes;
        if (i >= vectors) continue;
        held[k] = load_pack<V>(row + int64_t(i) * V);
        held_dy[k] = load_pack<V>(dy_row + int64_t(i) * V);
        add(i, held[k], held_dy[k]);
    }
    for (uint32_t i = at.lane + K * p.lanes; i < vectors; i += p.lanes) {
        add(i, load_pack<V>(row + int64_t(i) * V), load_pack<V>(dy_row + int64_t(i) * V));
    }
    total = row_sum(total, p.lanes) / float(p.c);
    along = row_sum(along, p.lanes) / float(p.c);
    if (!at.live) return;
    T* out_row = dx + at.row * p.c;
    const auto put = [&](uint32_t i, const Pack<T, V>& in, const Pack<T, V>& in_dy) {
        const Pack<float, V> g = load_pack<V>(gamma + i * V);
        Pack<T, V> out;
#pragma unroll
        for (int v = 0; v < V; v++) {
            const float dg = load(in_dy.v[v]) * g.v[v], normal = (load(in.v[v]) - mean) * rstd;
            out.v[v] = store<T>(((dg - total) - normal * along) * rstd);
        }
        store_pack(out_row + int64_t(i) * V, out);
    };
#pragma unroll
    for (int k = 0; k < K; k++) {
        const uint32_t i = at.lane + k * p.lanes;
        if (i < vectors) put(i, held[k], held_dy[k]);
    }
    for (uint32_t i = at.lane + K * p.lanes; i < vectors; i += p.lanes) {
        put(i, load_pack<V>(row + int64_t(i) * V), load_pack<V>(dy_row + int64_t(i) * V));
    }
}

// A block: blockDim.x vectors of channels times blockDim.y (a power of two) rows at a time of the chunk blockIdx.y.
template <typename T, int V>
__device__ __forceinline__ void bwd_dparams(float* partial, const T* dy, const T* x, const float* stats, const LayerNormParams& p,
                                            float2* scratch) {
    const uint32_t c = (blockIdx.x * blockDim.x + threadIdx.x) * V;
    float2 sum[V] = {};
    if (c < p.c) {
        const int64_t first = int64_t(blockIdx.y) * p.chunk, end = first + p.chunk < p.m ? first + p.chunk : p.m;
        const int64_t step = blockDim.y;
        int64_t row = first + threadIdx.y;
        const auto add = [&](int64_t at, const Pack<T, V>& in, const Pack<T, V>& in_dy) {
            const float mean = stats[at], rstd = stats[p.m + at];
#pragma unroll
            for (int v = 0; v < V; v++) {
                const float d = load(in_dy.v[v]);
                sum[v].x = fmaf(d, (load(in.v[v]) - mean) * rstd, sum[v].x);
                sum[v].y += d;
            }
        };
        for (; row + step < end; row += 2 * step) {  // two rows under way at once
            const int64_t next = row + step;
            const Pack<T, V> a = load_pack<V>(x + row * p.c + c), a_dy = load_pack<V>(dy + row * p.c + c);
            const Pack<T, V> b = load_pack<V>(x + next * p.c + c), b_dy = load_pack<V>(dy + next * p.c + c);
            add(row, a, a_dy);
            add(next, b, b_dy);
        }
        if (row < end) add(row, load_pack<V>(x + row * p.c + c), load_pack<V>(dy + row * p.c + c));
    }
    const int t = int(threadIdx.y * blockDim.x + threadIdx.x);
#pragma unroll
    for (int v = 0; v < V; v++) scratch[v * SUM_THREADS + t] = sum[v];
    for (uint32_t half = blockDim.y / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.y >= half) continue;
#pragma unroll
        for (int v = 0; v < V; v++) {
            const float2 other = scratch[v * SUM_THREADS + t + int(half * blockDim.x)];
            sum[v] = make_float2(sum[v].x + other.x, sum[v].y + other.y);
            scratch[v * SUM_THREADS + t] = sum[v];
        }
    }
    if (c >= p.c || threadIdx.y != 0) return;
    Pack<float, V> dgamma, dbeta;
#pragma unroll
    for (int v = 0; v < V; v++) {
        dgamma.v[v] = sum[v].x;
        dbeta.v[v] = sum[v].y;
    }
    float* out = partial + int64_t(blockIdx.y) * 2 * p.c + c;
    store_pack(out, dgamma);
    store_pack(out + p.c, dbeta);
}

// A row that is one vector a lane, or less, does without the code for more.
#define KERNELS(T, S)                                                                                                         \
    KERNEL(ROW_THREADS, layer_norm_fwd_##S,                                                                                   \
           (T * y, float* stats, const T* x, const float* gamma, const float* beta, LayerNormParams p)) {                     \
        if (p.c % VEC<T> != 0) fwd<T, 1, HELD_FWD>(y, stats, x, gamma, beta, p);                                              \
        else if (p.c <= VEC<T> * p.lanes) fwd<T, VEC<T>, 1>(y, stats, x, gamma, beta, p);                                     \
        else fwd<T, VEC<T>, HELD_FWD>(y, stats, x, gamma, beta, p);                                                           \
    }                                                                                                                         \
    KERNEL(ROW_THREADS, layer_norm_bwd_dx_##S,                                                                                \
           (T * dx, const T* dy, const T* x, const float* gamma, const float* stats, LayerNormParams p)) {                    \
        const T* g = dy ? dy : dx;                                                                                            \
        if (p.c % VEC<T> != 0) bwd_dx<T, 1, HELD_BWD>(dx, g, x, gamma, stats, p);                                             \
        else if (p.c <= VEC<T> * p.lanes) bwd_dx<T, VEC<T>, 1>(dx, g, x, gamma, stats, p);                                    \
        else bwd_dx<T, VEC<T>, HELD_BWD>(dx, g, x, gamma, stats, p);                                                          \
    }                                                                                                                         \
    KERNEL(SUM_THREADS, layer_norm_bwd_dparams_##S,                                                                           \
           (float* partial, const T* dy, const T* x, const float* stats, LayerNormParams p)) {                                \
        SHARED(float2, scratch, SUM_THREADS * VEC<T>);                                                                        \
        if (p.c % VEC<T> == 0) bwd_dparams<T, VEC<T>>(partial, dy, x, stats, p, scratch);                                     \
        else bwd_dparams<T, 1>(partial, dy, x, stats, p, scratch);                                                            \
    }
FOR_FLOATS(KERNELS)

// target[c] (+)= sum over chunks of partial[chunk,which,c]. A block: 32 columns, each warp every eighth chunk, then the warps' sums.
KERNEL(SUM_THREADS, layer_norm_bwd_fold_f32,
       (float* target, const float* partial, uint32_t c, uint32_t chunks, uint32_t which, uint32_t add)) {
    SHARED(float, sums, SUM_THREADS);
    const uint32_t column = blockIdx.x * WARP + lane_id(), warps = SUM_THREADS / WARP;
    float sum = 0.0f;
    if (column < c) {
#pragma unroll 8
        for (uint32_t i = warp_id(); i < chunks; i += warps) sum += partial[(int64_t(i) * 2 + which) * c + column];
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp_id() != 0 || column >= c) return;
#pragma unroll
    for (uint32_t i = 1; i < warps; i++) sum += sums[i * WARP + lane_id()];
    target[column] = add ? target[column] + sum : sum;
}
