// Batch normalisation with the residual sum and the ReLU behind it. x, residual, y, dy, dx, dresidual [M,C] T, M = N H W;
// gamma, beta, running statistics [C], stats [2,C] (mean, 1 / sqrt(var + eps)), sums [2,C] (dgamma, dbeta) f32.
// Over [M,C] a block has blockDim.x vectors of channels (16 bytes, or one channel where C fills no vector) times blockDim.y rows;
// blocks along x share the channels out, blocks along y the rows, so that a warp reads whole lines.
// Forward: stats reads x once (each thread a mean and squared deviations, joined exactly: Chan et al. 1979), stats_fold joins the
// blocks' [chunks,2,C], fwd is one pass. Backward: bwd_sums reads dy, x and y, bwd_fold adds the blocks' [chunks,2,C], bwd_train or
// bwd_frozen is one pass, which may write over dy and x. All sums in a fixed order: deterministic.
#include "common/kernel.cuh"

struct BatchNormParams {
    int64_t m;
    uint32_t c;
    uint32_t chunk;   // rows of a block of stats and bwd_sums
    uint32_t chunks;  // how many
    uint32_t relu;
    float momentum, eps;
};
static_assert(sizeof(BatchNormParams) == 32, "mirror of src/ops/batch_norm_relu/cuda.rs");

constexpr int THREADS = 256;
constexpr int FOLD_THREADS = 512;

// A set of numbers: how many, their mean, and the sum of squared deviations from it.
struct Moments {
    float n, mean, m2;
};

// (mean, m2) of a set becomes that of its union with another, which is `share` of both; `weight` = share times the set's own n.
__device__ __forceinline__ void absorb(float& mean, float& m2, float other_mean, float other_m2, float share, float weight) {
    const float away = other_mean - mean;
    mean = fmaf(away, share, mean);
    m2 = fmaf(away * away, weight, m2 + other_m2);
}

struct Join {
    __device__ __forceinline__ Moments operator()(Moments a, Moments b) const {
        const float n = a.n + b.n, share = b.n > 0.0f ? b.n / n : 0.0f;
        absorb(a.mean, a.m2, b.mean, b.m2, share, a.n * share);
        a.n = n;
        return a;
    }
};

struct Add {
    __device__ __forceinline__ float operator()(float a, float b) const { return a + b; }
    __device__ __forceinline__ float2 operator()(float2 a, float2 b) const { return make_float2(a.x + b.x, a.y + b.y); }
};

// Over the threads of each column of the block: those with threadIdx.y = 0 get the result. All threads of the block call it, once;
// blockDim.y is a power of two, scratch has V elements a thread.
template <int V, typename T, typename Op> __device__ __forceinline__ void reduce_columns(T (&v)[V], Op op, T* scratch) {
    const int threads = int(blockDim.x * blockDim.y), t = int(threadIdx.y * blockDim.x + threadIdx.x);
#pragma unroll
    for (int k = 0; k < V; k++) scratch[k * threads + t] = v[k];
    for (int half = int(blockDim.y) / 2; half > 0; half /= 2) {
        __syncthreads();
        if (int(threadIdx.y) >= half) continue;
#pragma unroll
        for (int k = 0; k < V; k++) {
            v[k] = op(v[k], scratch[k * threads + t + half * int(blockDim.x)]);
            scratch[k * threads + t] = v[k];
        }
    }
}

// Calls `use(row, read(row))` for the rows from `row` on, R of them read before the first is used.
template <int R, typename Read, typename Use>
__device__ __forceinline__ void over_rows(int64_t row, int64_t end, int64_t step, Read read, Use use) {
    for (; row + (R - 1) * step < end; row += R * step) {
        decltype(read(row)) in[R];
#pragma unroll
        for (int k = 0; k < R; k++) in[k] = read(row + k * step);
#pragma unroll
        for (int k = 0; k < R; k++) use(row + k * step, in[k]);
    }
    for (; row < end; row += step) use(row, read(row));
}

// This thread's first channel; it has none if that is C or more.
template <int V> __device__ __forceinline__ uint32_t first_channel() { return (blockIdx.x * blockDim.x + threadIdx.x) * V; }

// First row behind this block's chunk.
__device__ __forceinline__ int64_t chunk_end(const BatchNormParams& p) {
    const int64_t end = (int64_t(blockIdx.y) + 1) * p.chunk;
    return end < p.m ? end : p.m;
}

// What the numbers of channels c .. c + V are taken from, so that a large mean costs no digits: the middle one of the first, the
// middle and the last of each. One that lies far from all others is not it.
template <int V, typename T> __device__ __forceinline__ Pack<float, V> origins(const T* x, const BatchNormParams& p, uint32_t c) {
    const Pack<T, V> in[3] = {load_pack<V>(x + c), load_pack<V>(x + p.m / 2 * p.c + c), load_pack<V>(x + (p.m - 1) * p.c + c)};
    Pack<float, V> out;
#pragma unroll
    for (int v = 0; v < V; v++) {
        const float a0 = load(in[0].v[v]), a1 = load(in[1].v[v]), a2 = load(in[2].v[v]);
        out.v[v] = fmaxf(fminf(a0, a1), fminf(fmaxf(a0, a1), a2));
    }
    return out;
}

template <typename T, int V>
__device__ __forceinline__ void stats(float* partial, const T* x, const BatchNormParams& p, Moments* scratch) {
    const uint32_t c = first_channel<V>();
    Moments all[V] = {};
    if (c < p.c) {
        const Pack<float, V> origin = origins<V>(x, p, c);
        const int64_t step = blockDim.y, end = chunk_end(p);
        int64_t row = int64_t(blockIdx.y) * p.chunk + threadIdx.y;
        float n = 0.0f, mean[V] = {}, m2[V] = {};
        for (; row + 3 * step < end; row += 4 * step) {
            Pack<T, V> in[4];
#pragma unroll
            for (int k = 0; k < 4; k++) in[k] = load_pack<V>(x + (row + k * step) * p.c + c);
            const float share = 4.0f / (n + 4.0f), weight = n * share;
            n += 4.0f;
#pragma unroll
            for (int v = 0; v < V; v++) {
                const float a0 = load(in[0].v[v]) - origin.v[v], a1 = load(in[1].v[v]) - origin.v[v];
                const float a2 = load(in[2].v[v]) - origin.v[v], a3 = load(in[3].v[v]) - origin.v[v];
                const float middle = 0.25f * ((a0 + a1) + (a2 + a3));
                const float d0 = a0 - middle, d1 = a1 - middle, d2 = a2 - middle, d3 = a3 - middle;
                absorb(mean[v], m2[v], middle, fmaf(d0, d0, d1 * d1) + fmaf(d2, d2, d3 * d3), share, weight);
            }
        }
        for (; row < end; row += step) {
            const Pack<T, V> in = load_pack<V>(x + row * p.c + c);
            const float share = 1.0f / (n + 1.0f), weight = n * share;
            n += 1.0f;
#pragma unroll
            for (int v = 0; v < V; v++) absorb(mean[v], m2[v], load(in.v[v]) - origin.v[v], 0.0f, share, weight);
        }
#pragma unroll
        for (int v = 0; v < V; v++) all[v] = {n, mean[v], m2[v]};
    }
    reduce_columns(all, Join(), scratch);
    if (c < p.c && threadIdx.y == 0) {
        Pack<float, V> mean, m2;
        for (int v = 0; v < V; v++) {
            mean.v[v] = all[v].mean;
            m2.v[v] = all[v].m2;
        }
        float* out = partial + int64_t(blockIdx.y) * 2 * p.c + c;
        store_pack(out, mean);
        store_pack(out + p.c, m2);
    }
}

// One column of the block a channel. A batch of nothing leaves the running statistics.
template <typename T>
__device__ __forceinline__ void stats_fold(float* stats, float* running_mean, float* running_var, const float* partial, const T* x,
                                           const BatchNormParams& p, Moments* scratch) {
    const uint32_t c = first_channel<1>();
    Moments all[1] = {};
    if (c < p.c) {
#pragma unroll 4
        for (uint32_t i = threadIdx.y; i < p.chunks; i += blockDim.y) {
            const int64_t left = p.m - int64_t(i) * p.chunk;
            const float* in = partial + int64_t(i) * 2 * p.c + c;
            all[0] = Join()(all[0], {float(left < p.chunk ? left : p.chunk), in[0], in[p.c]});
        }
    }
    reduce_columns(all, Join(), scratch);
    if (c >= p.c || threadIdx.y != 0) return;
    if (p.m == 0) {
        stats[c] = 0.0f;
        stats[c + p.c] = 0.0f;
        return;
    }
    const double m = double(p.m), mean = double(origins<1>(x, p, c).v[0]) + double(all[0].mean), m2 = double(all[0].m2);
    const double old_mean = double(running_mean[c]), old_var = double(running_var[c]);
    stats[c] = float(mean);
    stats[c + p.c] = float(1.0 / sqrt(m2 / m + double(p.eps)));
    // A batch that overflowed (16 bits; its step is skipped) must not stay in the statistics for ever.
    const float to_mean = float(old_mean + double(p.momentum) * (mean - old_mean));
    const float to_var = float(old_var + double(p.momentum) * (m2 / (m - 1.0) - old_var));
    if (to_mean - to_mean == 0.0f) running_mean[c] = to_mean;
    if (to_var - to_var == 0.0f) running_var[c] = to_var;
}

template <typename T, int V>
__device__ __forceinline__ void fwd(T* y, const T* x, const T* residual, const float* stats, const float* gamma, const float* beta,
                                    const BatchNormParams& p) {
    const uint32_t c = first_channel<V>();
    if (c >= p.c) return;
    const Pack<float, V> mean = load_pack<V>(stats + c), shift = load_pack<V>(beta + c), g = load_pack<V>(gamma + c);
    Pack<float, V> scale = load_pack<V>(stats + p.c + c);
#pragma unroll
    for (int v = 0; v < V; v++) scale.v[v] *= g.v[v];
    struct In {
        Pack<T, V> x, residual;
    };
    const int64_t step = int64_t(gridDim.y) * blockDim.y;
    over_rows<2>(int64_t(blockIdx.y) * blockDim.y + threadIdx.y, p.m, step,
        [&](int64_t row) {
            In in;
            in.x = load_pack<V>(x + row * p.c + c);
            in.residual = residual ? load_pack<V>(residual + row * p.c + c) : in.x;
            return in;
        },
        [&](int64_t row, const In& in) {
            Pack<T, V> out;
#pragma unroll
            for (int v = 0; v < V; v++) {
                float a = fmaf(load(in.x.v[v]) - mean.v[v], scale.v[v], shift.v[v]);
                if (residual) a += load(in.residual.v[v]);
                out.v[v] = store<T>(p.relu && a < 0.0f ? 0.0f : a);
            }
            store_pack(y + row * p.c + c, out);
        });
}

// What the backward kernels read of a row; without a ReLU there is no y, in frozen batch norm no x.
template <typename T, int V> struct Row {
    Pack<T, V> dy, x, y;
};

template <typename T, int V>
__device__ __forceinline__ Row<T, V> read_row(const T* dy, const T* x, const T* y, int64_t at) {
    Row<T, V> in;
    in.dy = load_pack<V>(dy + at);
    in.x = x ? load_pack<V>(x + at) : in.dy;
    in.y = y ? load_pack<V>(y + at) : in.dy;
    return in;
}

// The gradient behind the ReLU: 0 where y is clamped (NaN is not).
template <typename T> __device__ __forceinline__ float masked(const T& dy, const T& y, bool relu) {
    return relu && load(y) <= 0.0f ? 0.0f : load(dy);
}

template <typename T, int V>
__device__ __forceinline__ void bwd_sums(float* partial, const T* dy, const T* x, const T* y, const float* stats,
                                         const BatchNormParams& p, float2* scratch) {
    const uint32_t c = first_channel<V>();
    float2 sum[V] = {};
    if (c < p.c) {
        const Pack<float, V> mean = load_pack<V>(stats + c);
        over_rows<2>(int64_t(blockIdx.y) * p.chunk + threadIdx.y, chunk_end(p), blockDim.y,
            [&](int64_t row) { return read_row<T, V>(dy, x, y, row * p.c + c); },
            [&](int64_t, const Row<T, V>& in) {
#pragma unroll
                for (int v = 0; v < V; v++) {
                    const float g = masked(in.dy.v[v], in.y.v[v], y != nullptr);
                    sum[v].x = fmaf(g, load(in.x.v[v]) - mean.v[v], sum[v].x);
                    sum[v].y += g;
                }
            });
        const Pack<float, V> rstd = load_pack<V>(stats + p.c + c);
#pragma unroll
        for (int v = 0; v < V; v++) sum[v].x *= rstd.v[v];
    }
    reduce_columns(sum, Add(), scratch);
    if (c < p.c && threadIdx.y == 0) {
        Pack<float, V> dgamma, dbeta;
        for (int v = 0; v < V; v++) {
            dgamma.v[v] = sum[v].x;
            dbeta.v[v] = sum[v].y;
        }
        float* out = partial + int64_t(blockIdx.y) * 2 * p.c + c;
        store_pack(out, dgamma);
        store_pack(out + p.c, dbeta);
    }
}

// dx = a g + (b (x - mean) + d), with g the gradient behind the ReLU, which dresidual gets. dx and dresidual may be dy or x:
// a thread reads its rows before it writes them.
template <typename T, int V>
__device__ __forceinline__ void bwd_train(T* dx, T* dresidual, const T* dy, const T* x, const T* y, const float* stats,
                                          const float* gamma, const float* sums, const BatchNormParams& p) {
    const uint32_t c = first_channel<V>();
    if (c >= p.c) return;
    const Pack<float, V> mean = load_pack<V>(stats + c), rstd = load_pack<V>(stats + p.c + c);
    Pack<float, V> a = load_pack<V>(gamma + c), b = load_pack<V>(sums + c), d = load_pack<V>(sums + p.c + c);
    const float m = float(p.m);
#pragma unroll
    for (int v = 0; v < V; v++) {
        a.v[v] *= rstd.v[v];
        b.v[v] = -a.v[v] * rstd.v[v] * (b.v[v] / m);
        d.v[v] = -a.v[v] * (d.v[v] / m);
    }
    const int64_t step = int64_t(gridDim.y) * blockDim.y;
    over_rows<2>(int64_t(blockIdx.y) * blockDim.y + threadIdx.y, p.m, step,
        [&](int64_t row) { return read_row<T, V>(dy, x, y, row * p.c + c); },
        [&](int64_t row, const Row<T, V>& in) {
            Pack<T, V> g, out;
#pragma unroll
            for (int v = 0; v < V; v++) {
                const float gv = masked(in.dy.v[v], in.y.v[v], y != nullptr);
                g.v[v] = store<T>(gv);
                out.v[v] = store<T>(fmaf(a.v[v], gv, fmaf(b.v[v], load(in.x.v[v]) - mean.v[v], d.v[v])));
            }
            if (dresidual) store_pack(dresidual + row * p.c + c, g);
            store_pack(dx + row * p.c + c, out);
        });
}

// As bwd_train where the statistics do not depend on x; without dx or without dresidual.
template <typename T, int V>
__device__ __forceinline__ void bwd_frozen(T* dx, T* dresidual, const T* dy, const T* y, const float* stats, const float* gamma,
                                           const BatchNormParams& p) {
    const uint32_t c = first_channel<V>();
    if (c >= p.c) return;
    const Pack<float, V> rstd = load_pack<V>(stats + p.c + c);
    Pack<float, V> a = load_pack<V>(gamma + c);
#pragma unroll
    for (int v = 0; v < V; v++) a.v[v] *= rstd.v[v];
    const int64_t step = int64_t(gridDim.y) * blockDim.y;
    over_rows<2>(int64_t(blockIdx.y) * blockDim.y + threadIdx.y, p.m, step,
        [&](int64_t row) { return read_row<T, V>(dy, nullptr, y, row * p.c + c); },
        [&](int64_t row, const Row<T, V>& in) {
            Pack<T, V> g, out;
#pragma unroll
            for (int v = 0; v < V; v++) {
                const float gv = masked(in.dy.v[v], in.y.v[v], y != nullptr);
                g.v[v] = store<T>(gv);
                out.v[v] = store<T>(gv * a.v[v]);
            }
            if (dresidual) store_pack(dresidual + row * p.c + c, g);
            if (dx) store_pack(dx + row * p.c + c, out);
        });
}

#define KERNELS(T, S)                                                                                                           \
    KERNEL(THREADS, batch_norm_relu_stats_##S, (float* partial, const T* x, BatchNormParams p)) {                               \
        SHARED(Moments, scratch, THREADS * VEC<T>);                                                                             \
        if (p.c % VEC<T> == 0) stats<T, VEC<T>>(partial, x, p, scratch);                                                        \
        else stats<T, 1>(partial, x, p, scratch);                                                                               \
    }                                                                                                                           \
    KERNEL(FOLD_THREADS, batch_norm_relu_stats_fold_##S,                                                                        \
           (float* stats, float* running_mean, float* running_var, const float* partial, const T* x, BatchNormParams p)) {      \
        SHARED(Moments, scratch, FOLD_THREADS);                                                                                 \
        stats_fold(stats, running_mean, running_var, partial, x, p, scratch);                                                   \
    }                                                                                                                           \
    KERNEL(THREADS, batch_norm_relu_fwd_##S, (T * y, const T* x, const T* residual, const float* stats, const float* gamma,     \
                                              const float* beta, BatchNormParams p)) {                                          \
        if (p.c % VEC<T> == 0) fwd<T, VEC<T>>(y, x, residual, stats, gamma, beta, p);                                           \
        else fwd<T, 1>(y, x, residual, stats, gamma, beta, p);                                                                  \
    }                                                                                                                           \
    KERNEL(THREADS, batch_norm_relu_bwd_sums_##S,                                                                               \
           (float* partial, const T* dy, const T* x, const T* y, const float* stats, BatchNormParams p)) {                      \
        SHARED(float2, scratch, THREADS * VEC<T>);                                                                              \
        if (p.c % VEC<T> == 0) bwd_sums<T, VEC<T>>(partial, dy, x, y, stats, p, scratch);                                       \
        else bwd_sums<T, 1>(partial, dy, x, y, stats, p, scratch);                                                              \
    }                                                                                                                           \
    KERNEL(THREADS, batch_norm_relu_bwd_train_##S, (T * dx, T * dresidual, const T* dy, const T* x, const T* y,                 \
                                                    const float* stats, const float* gamma, const float* sums,                  \
                                                    BatchNormParams p)) {                                                       \
        if (p.c % VEC<T> == 0) bwd_train<T, VEC<T>>(dx, dresidual, dy, x, y, stats, gamma, sums, p);                            \
        else bwd_train<T, 1>(dx, dresidual, dy, x, y, stats, gamma, sums, p);                                                   \
    }                                                                                                                           \
    KERNEL(THREADS, batch_norm_relu_bwd_frozen_##S, (T * dx, T * dresidual, const T* dy, const T* y, const float* stats,        \
                                                     const float* gamma, BatchNormParams p)) {                                  \
        if (p.c % VEC<T> == 0) bwd_frozen<T, VEC<T>>(dx, dresidual, dy, y, stats, gamma, p);                                    \
        else bwd_frozen<T, 1>(dx, dresidual, dy, y, stats, gamma, p);                                                           \
    }
FOR_FLOATS(KERNELS)

// Stats of frozen batch norm.
KERNEL(THREADS, batch_norm_relu_running_stats_f32, (float* stats, const float* mean, const float* var, uint32_t c, float eps)) {
    const int64_t i = global_thread();
    if (i >= c) return;
    stats[i] = mean[i];
    stats[i + c] = float(1.0 / sqrt(double(var[i]) + double(eps)));
}

// sums[i] = sum of the chunks' partial[chunk,i]; one column of the block an i.
KERNEL(FOLD_THREADS, batch_norm_relu_bwd_fold_f32, (float* sums, const float* partial, uint32_t width, uint32_t chunks)) {
    SHARED(float, scratch, FOLD_THREADS);
    const uint32_t i = first_channel<1>();
    float sum[1] = {};
    if (i < width) {
#pragma unroll 4
        for (uint32_t k = threadIdx.y; k < chunks; k += blockDim.y) sum[0] += partial[int64_t(k) * width + i];
    }
    reduce_columns(sum, Add(), scratch);
    if (i < width && threadIdx.y == 0) sums[i] = sum[0];
}

// target = sums[from ..], or += it.
KERNEL(THREADS, batch_norm_relu_bwd_put_f32, (float* target, const float* sums, uint32_t from, uint32_t c, uint32_t add)) {
    const int64_t i = global_thread();
    if (i >= c) return;
    target[i] = add ? target[i] + sums[from + i] : sums[from + i];
}
