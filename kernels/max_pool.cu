// Max pooling. x, dx [N,H,W,C] T; y, dy [N,OH,OW,C] T; which u8 [N,OH,OW,C]: the winner's cell in its window,
// ky K + kx.
// Forward: one pass; overlapping windows find each other's cells in the cache.
// Backward: gathers. Each cell of dx reads the windows that cover it, in the order of the CPU's loops, and sums in f32.
// Deterministic.
#include "common/kernel.cuh"

struct MaxPoolParams {
    uint32_t n, h, w, c, oh, ow, k, stride, pad;
};
static_assert(sizeof(MaxPoolParams) == 36, "mirror of src/ops/max_pool/cuda.rs");

// K > 0 is the window's size as a constant: the loops unroll, and all loads of a window are in flight at once.
// With K = 0 the size is p.k.
// thread i of a row   cell ox = i / (C / V) of a row of y, V channels from (i % (C / V)) V on; V = 16 bytes, or 1
//                     neighbouring threads read neighbouring channels, then neighbouring cells
// block (x, y)        128 such threads of row y of the N*OH rows, then of row y + gridDim.y, ...
template <typename T, int V, int K> __device__ __forceinline__ void max_pool_fwd(T* y, uint8_t* which, const T* x, MaxPoolParams p) {
    const int k = K > 0 ? K : int(p.k), h = int(p.h), w = int(p.w);
    const uint32_t vectors = p.c / V, i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.ow * vectors) return;
    const uint32_t c = i % vectors * V;
    const int ix0 = int(i / vectors * p.stride) - int(p.pad);
    const int64_t rows = int64_t(p.n) * p.oh;
    for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
        const int64_t n = row / p.oh;
        const int iy0 = int(uint32_t(row - n * p.oh) * p.stride) - int(p.pad);
        const T* image = x + n * p.h * p.w * p.c + c;
        // If all cells of a window are -inf, the winner is the window's first cell inside the image.
        const int first = max(-iy0, 0) * k + max(-ix0, 0);
        float best[V];
        int tap[V];
        for (int v = 0; v < V; v++) {
            best[v] = __uint_as_float(0xff800000u);  // -inf
            tap[v] = first;
        }
#pragma unroll
        for (int ky = 0; ky < k; ky++) {
            // A cell outside is read at the nearest cell inside and ignored, so that no load waits for a branch.
            const int iy = min(max(iy0 + ky, 0), h - 1);
            const T* line = image + int64_t(iy) * p.w * p.c;
#pragma unroll
            for (int kx = 0; kx < k; kx++) {
                const int ix = min(max(ix0 + kx, 0), w - 1);
                const bool inside = iy == iy0 + ky && ix == ix0 + kx;
                const Pack<T, V> a = load_pack<V>(line + uint32_t(ix) * p.c);
                for (int v = 0; v < V; v++) {
                    const float value = load(a.v[v]);
                    const bool larger = inside && (value > best[v] || value != value);
                    best[v] = larger ? value : best[v];
                    tap[v] = larger ? ky * k + kx : tap[v];
                }
            }
        }
        Pack<T, V> out;
        Pack<uint8_t, V> taps;
        for (int v = 0; v < V; v++) {
            out.v[v] = store<T>(best[v]);
            taps.v[v] = uint8_t(tap[v]);
        }
        const int64_t at = row * p.ow * p.c + uint32_t(i * V);
        store_pack(y + at, out);
        if (which) store_pack(which + at, taps);
    }
}

// First and last window along one side that cover cell `i`. If none does, the last is smaller than the first.
__device__ __forceinline__ int2 windows_over(uint32_t i, uint32_t windows, const MaxPoolParams& p) {
    const uint32_t end = i + p.pad;
    const uint32_t first = end < p.k ? 0 : (end - p.k) / p.stride + 1;
    return make_int2(int(first), min(int(end / p.stride), int(windows) - 1));
}

// thread i of a row   cell ix = i / (C / V) of a row of dx, V channels from (i % (C / V)) V on
// block (x, y)        128 such threads of row y of the N*H rows, then of row y + gridDim.y, ...
//                     one thread owns each vector of dx and adds dy where `which` names its cell: no atomics
template <typename T, int V> __device__ __forceinline__ void max_pool_bwd(T* dx, const uint8_t* which, const T* dy, MaxPoolParams p) {
    const uint32_t vectors = p.c / V, i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= p.w * vectors) return;
    const uint32_t c = i % vectors * V, ix = i / vectors;
    const int2 across = windows_over(ix, p.ow, p);
    const int64_t rows = int64_t(p.n) * p.h;
    for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
        const int64_t n = row / p.h;
        const uint32_t iy = uint32_t(row - n * p.h);
        const int2 down = windows_over(iy, p.oh, p);
        float sum[V] = {};
        for (int oy = down.y; oy >= down.x; oy--) {
            const uint32_t ky = iy + p.pad - uint32_t(oy) * p.stride;
            const int64_t line = (n * p.oh + oy) * p.ow * p.c + c;
            for (int ox = across.x; ox <= across.y; ox++) {
                const uint32_t tap = ky * p.k + ix + p.pad - uint32_t(ox) * p.stride;
                const int64_t at = line + uint32_t(ox) * p.c;
                const Pack<uint8_t, V> winner = load_pack<V>(which + at);
                const Pack<T, V> g = load_pack<V>(dy + at);
                for (int v = 0; v < V; v++) sum[v] += winner.v[v] == tap ? load(g.v[v]) : 0.0f;
            }
        }
        Pack<T, V> out;
        for (int v = 0; v < V; v++) out.v[v] = store<T>(sum[v]);
        store_pack(dx + row * p.w * p.c + uint32_t(i * V), out);
    }
}

template <typename T, int V> __device__ __forceinline__ void max_pool_fwd(T* y, uint8_t* which, const T* x, MaxPoolParams p) {
    if (p.k == 3) max_pool_fwd<T, V, 3>(y, which, x, p);
    else max_pool_fwd<T, V, 0>(y, which, x, p);
}

#define KERNELS(T, S)                                                                                     \
    KERNEL(128, max_pool_fwd_##S, (T * y, uint8_t * which, const T* x, MaxPoolParams p)) {                \
        if (p.c % VEC<T> == 0) max_pool_fwd<T, VEC<T>>(y, which, x, p);                                   \
        else max_pool_fwd<T, 1>(y, which, x, p);                                                          \
    }                                                                                                     \
    KERNEL(128, max_pool_bwd_##S, (T * dx, const uint8_t* which, const T* dy, MaxPoolParams p)) {         \
        if (p.c % VEC<T> == 0) max_pool_bwd<T, VEC<T>>(dx, which, dy, p);                                 \
        else max_pool_bwd<T, 1>(dx, which, dy, p);                                                        \
    }
FOR_FLOATS(KERNELS)
