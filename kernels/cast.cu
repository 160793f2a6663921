// Converts between f32 and the 16-bit floats, rounding to the nearest value. y, x [n]. One pass. Deterministic.
//   thread i   groups i, i + grid threads, ... of four elements    16 bytes of f32, 8 of the other type
//              then elements i, i + grid threads, ... of the tail  n need not be a multiple of four
#include "common/kernel.cuh"

template <typename To, typename From> __device__ __forceinline__ void cast(To* y, const From* x, int64_t n) {
    constexpr int V = 4;
    const int64_t vectors = n / V;
    for (int64_t i = global_thread(); i < vectors; i += global_threads()) {
        const Pack<From, V> a = load_pack<V>(x + i * V);
        Pack<To, V> b;
#pragma unroll
        for (int k = 0; k < V; k++) b.v[k] = store<To>(load(a.v[k]));
        store_pack(y + i * V, b);
    }
    for (int64_t i = vectors * V + global_thread(); i < n; i += global_threads()) y[i] = store<To>(load(x[i]));
}

#define KERNELS(T, S)                                                                             \
    KERNEL(256, cast_from_f32_##S, (T * y, const float* x, int64_t n)) { cast(y, x, n); }         \
    KERNEL(256, cast_to_f32_##S, (float* y, const T* x, int64_t n)) { cast(y, x, n); }
KERNELS(f16, f16)
KERNELS(bf16, bf16)
