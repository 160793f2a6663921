// ReLU. x, y [n] T. One 16-byte vector a thread and turn, then the rest one by one; one pass over memory. Deterministic.
// The backward pass is relu_mask of elementwise.cu.
#include "common/kernel.cuh"

template <typename T, int V> __device__ __forceinline__ void relu_fwd(T* y, const T* x, int64_t i) {
    Pack<T, V> v = load_pack<V>(x + i);
#pragma unroll
    for (int k = 0; k < V; k++) v.v[k] = load(v.v[k]) <= 0.0f ? store<T>(0.0f) : v.v[k];  // NaN stays
    store_pack(y + i, v);
}

#define KERNELS(T, S)                                                                                                \
    KERNEL(256, relu_fwd_##S, (T * y, const T* x, int64_t n)) {                                                      \
        const int64_t vectors = n / VEC<T>;                                                                          \
        for (int64_t i = global_thread(); i < vectors; i += global_threads()) relu_fwd<T, VEC<T>>(y, x, i * VEC<T>); \
        for (int64_t i = vectors * VEC<T> + global_thread(); i < n; i += global_threads()) relu_fwd<T, 1>(y, x, i);  \
    }
FOR_FLOATS(KERNELS)
