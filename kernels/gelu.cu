// GELU. x, y, dy, dx [n] T; if dy is null, dx holds dy on entry. One pass over memory. Deterministic.
// The formulas are those of src/ops/gelu/cpu.rs, which also gives their errors.
//   thread i   vectors i, i + grid threads, ... of 16 bytes        neighbouring threads use neighbouring addresses
//              then elements i, i + grid threads, ... of the tail  n need not be a multiple of the vector
//              each element depends on its own index alone         so dx may hold dy
#include "common/kernel.cuh"

struct Tail {
    float e, q;  // exp(-a^2/2), and the probability that a standard normal number is above a
};

__device__ __forceinline__ Tail tail(float a) {
    const float e = exp2f(a * a * -0.7213475f), t = 1.0f / fmaf(0.2758734f, a, 1.0f);
    float p = fmaf(-0.1136269f, t, 0.44220653f);
    p = fmaf(p, t, -0.31598222f);
    p = fmaf(p, t, 0.32360315f);
    p = fmaf(p, t, 0.046154194f);
    p = fmaf(p, t, 0.11764525f);
    return {e, e * (t * p)};
}

__device__ __forceinline__ float magnitude(float x) {
    const float a = fabsf(x);
    return a > 12.0f ? 12.0f : a;  // NaN stays NaN
}

__device__ __forceinline__ float gelu(float x) {
    const float a = magnitude(x);
    return fmaf(-a, tail(a).q, x > 0.0f ? x : 0.0f);
}

__device__ __forceinline__ float slope(float x) {
    const float a = magnitude(x);
    const Tail t = tail(a);
    const float below = fmaf(-a * 0.3989423f, t.e, t.q);
    return x > 0.0f ? 1.0f - below : below;
}

template <typename T, int V> __device__ __forceinline__ void gelu_fwd(T* y, const T* x, int64_t i) {
    Pack<T, V> v = load_pack<V>(x + i);
#pragma unroll
    for (int k = 0; k < V; k++) v.v[k] = store<T>(gelu(load(v.v[k])));
    store_pack(y + i, v);
}

template <typename T, int V> __device__ __forceinline__ void gelu_bwd(T* dx, const T* dy, const T* x, int64_t i) {
    Pack<T, V> g = load_pack<V>(dy + i);
    const Pack<T, V> v = load_pack<V>(x + i);
#pragma unroll
    for (int k = 0; k < V; k++) g.v[k] = store<T>(load(g.v[k]) * slope(load(v.v[k])));
    store_pack(dx + i, g);
}

#define KERNELS(T, S)                                                                                                \
    KERNEL(256, gelu_fwd_##S, (T * y, const T* x, int64_t n)) {                                                      \
        const int64_t vectors = n / VEC<T>;                                                                          \
        for (int64_t i = global_thread(); i < vectors; i += global_threads()) gelu_fwd<T, VEC<T>>(y, x, i * VEC<T>); \
        for (int64_t i = vectors * VEC<T> + global_thread(); i < n; i += global_threads()) gelu_fwd<T, 1>(y, x, i);  \
    }                                                                                                                \
    KERNEL(256, gelu_bwd_##S, (T * dx, const T* dy, const T* x, int64_t n)) {                                        \
        const T* g = dy ? dy : dx;                                                                                   \
        const int64_t vectors = n / VEC<T>;                                                                          \
        for (int64_t i = global_thread(); i < vectors; i += global_threads()) gelu_bwd<T, VEC<T>>(dx, g, x, i * VEC<T>); \
        for (int64_t i = vectors * VEC<T> + global_thread(); i < n; i += global_threads()) gelu_bwd<T, 1>(dx, g, x, i);  \
    }
FOR_FLOATS(KERNELS)
