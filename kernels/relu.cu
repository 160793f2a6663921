// ReLU. x, y [n] T. One pass over memory. Deterministic. The backward pass is relu_mask of elementwise.cu.
//   thread i   vectors i, i + grid threads, ... of 16 bytes        neighbouring threads use neighbouring addresses
//              then elements i, i + grid threads, ... of the tail  n need not be a multiple of the vector
#include "common/kernel.cuh"

template <typename T, int V> __device__ __forceinline__ void relu_fwd(T* y, const T* x, int64_t i) {
    Pack<T, V> v = load_pack<V>(x + i);
#pragma unroll
    for (int k = 0; k < V; k++) v.v[k] = load(v.v[k]) <= 0.0f ? store<T>(0.0f) : v.v[k];  // NaN stays NaN
    store_pack(y + i, v);
}

#define KERNELS(T, S)                                                                                                \
    KERNEL(256, relu_fwd_##S, (T * y, const T* x, int64_t n)) {                                                      \
        const int64_t vectors = n / VEC<T>;                                                                          \
        for (int64_t i = global_thread(); i < vectors; i += global_threads()) relu_fwd<T, VEC<T>>(y, x, i * VEC<T>); \
        for (int64_t i = vectors * VEC<T> + global_thread(); i < n; i += global_threads()) relu_fwd<T, 1>(y, x, i);  \
    }
FOR_FLOATS(KERNELS)
