// Moves the rows of a transposed convolution's matrix product (kernel 2, stride 2) to pixels, adds bias and ReLU, and
// moves gradients back. rows [R,H,W,2,2,O], y, dy [R,2H,2W,O] of one type, bias [O] f32 or null. One pass: every
// element is read once and written once. Deterministic.
//   thread i   vector i of y, then i + grid threads; 16 bytes, or one element (see KERNELS below)
//              chunk = i / (2 O / V): the two pixels that one pixel of x gives to one row of y
//              a chunk's 2 O elements are contiguous in y and in rows: both sides are coalesced
#include "common/kernel.cuh"

struct Deconv2x2Params {
    uint64_t lines;  // rows of y: R * 2H
    uint32_t w, o, relu, unused;
};
static_assert(sizeof(Deconv2x2Params) == 24, "mirror of src/ops/deconv2x2/cuda.rs");

// Calls `f(index in y, index in rows, channel)` of the first element of each of this thread's vectors.
template <int V, typename Index, typename F> __device__ __forceinline__ void each_vector(Deconv2x2Params p, F f) {
    const Index vectors = Index(2 * p.o / V), count = Index(p.lines) * Index(p.w) * vectors;
    for (Index i = Index(global_thread()); i < count; i += Index(global_threads())) {
        const Index chunk = i / vectors, k = i % vectors * V, line = chunk / p.w, w = chunk % p.w;
        const int64_t from = ((int64_t(line / 2) * p.w + w) * 2 + line % 2) * (2 * int64_t(p.o)) + k;
        f(int64_t(i) * V, from, uint32_t(k < p.o ? k : k - p.o));
    }
}

template <typename T, int V, typename Index>
__device__ void deconv2x2_fwd(T* y, const T* rows, const float* bias, Deconv2x2Params p) {
    each_vector<V, Index>(p, [&](int64_t at, int64_t from, uint32_t o) {
        Pack<T, V> v = load_pack<V>(rows + from);
        Pack<float, V> b = {};
        if (bias) b = load_pack<V>(bias + o);
#pragma unroll
        for (int k = 0; k < V; k++) {
            const float sum = bias ? load(v.v[k]) + b.v[k] : load(v.v[k]);
            v.v[k] = store<T>(p.relu && sum < 0.0f ? 0.0f : sum);  // NaN stays NaN
        }
        store_pack(y + at, v);
    });
}

template <typename T, int V, typename Index>
__device__ void deconv2x2_bwd(T* rows, const T* dy, const T* y, Deconv2x2Params p) {
    each_vector<V, Index>(p, [&](int64_t at, int64_t to, uint32_t) {
        Pack<T, V> g = load_pack<V>(dy + at);
        if (y) {
            const Pack<T, V> v = load_pack<V>(y + at);
#pragma unroll
            for (int k = 0; k < V; k++) g.v[k] = load(v.v[k]) <= 0.0f ? store<T>(0.0f) : g.v[k];
        }
        store_pack(rows + to, g);
    });
}

// Whether 32 bits can count the elements and one grid step more: divisions of 64 bits cost more than the memory.
__device__ __forceinline__ bool few(const Deconv2x2Params& p) { return p.lines * p.w < (uint64_t(1) << 30) / p.o; }

#define KERNELS(T, S)                                                                                \
    KERNEL(256, deconv2x2_fwd_##S, (T * y, const T* rows, const float* bias, Deconv2x2Params p)) {   \
        if (p.o % VEC<T> == 0 && few(p)) deconv2x2_fwd<T, VEC<T>, uint32_t>(y, rows, bias, p);       \
        else deconv2x2_fwd<T, 1, int64_t>(y, rows, bias, p);                                         \
    }                                                                                                \
    KERNEL(256, deconv2x2_bwd_##S, (T * rows, const T* dy, const T* y, Deconv2x2Params p)) {         \
        if (p.o % VEC<T> == 0 && few(p)) deconv2x2_bwd<T, VEC<T>, uint32_t>(rows, dy, y, p);         \
        else deconv2x2_bwd<T, 1, int64_t>(rows, dy, y, p);                                           \
    }
FOR_FLOATS(KERNELS)
