// Add in place, copy, fill, scale, and ReLU's mask. y, x [n] of one type. One pass over memory. Deterministic.
//   thread i   vectors i, i + grid threads, ... of 16 bytes        neighbouring threads use neighbouring addresses
//              then elements i, i + grid threads, ... of the tail  n need not be a multiple of the vector
//              one thread owns each element                        so y may be read and written in place
#include "common/kernel.cuh"

// Calls `vector(first element)` for each whole vector of this thread, and `each(element)` for its elements of the tail.
template <typename T, typename Vector, typename Each> __device__ __forceinline__ void over(int64_t n, Vector vector, Each each) {
    const int64_t vectors = n / VEC<T>;
    for (int64_t i = global_thread(); i < vectors; i += global_threads()) vector(i * VEC<T>);
    for (int64_t i = vectors * VEC<T> + global_thread(); i < n; i += global_threads()) each(i);
}

template <typename T> __device__ void add_assign(T* y, const T* x, int64_t n) {
    over<T>(n, [&](int64_t i) {
        Vec<T> a = load_vec(y + i);
        const Vec<T> b = load_vec(x + i);
        for (int k = 0; k < VEC<T>; k++) a.v[k] = store<T>(load(a.v[k]) + load(b.v[k]));
        store_vec(y + i, a);
    }, [&](int64_t i) { y[i] = store<T>(load(y[i]) + load(x[i])); });
}

template <typename T> __device__ void copy(T* y, const T* x, int64_t n) {
    over<T>(n, [&](int64_t i) { store_vec(y + i, load_vec(x + i)); }, [&](int64_t i) { y[i] = x[i]; });
}

template <typename T> __device__ void fill(T* y, float value, int64_t n) {
    const T v = store<T>(value);
    Vec<T> all;
    for (int k = 0; k < VEC<T>; k++) all.v[k] = v;
    over<T>(n, [&](int64_t i) { store_vec(y + i, all); }, [&](int64_t i) { y[i] = v; });
}

template <typename T> __device__ void scale(T* y, float factor, int64_t n) {
    over<T>(n, [&](int64_t i) {
        Vec<T> a = load_vec(y + i);
        for (int k = 0; k < VEC<T>; k++) a.v[k] = store<T>(load(a.v[k]) * factor);
        store_vec(y + i, a);
    }, [&](int64_t i) { y[i] = store<T>(load(y[i]) * factor); });
}

// Sets dx, which holds dy on entry, to 0 where y was clamped (y <= 0; NaN was not clamped).
template <typename T> __device__ void relu_mask(T* dx, const T* y, int64_t n) {
    const T zero = store<T>(0.0f);
    over<T>(n, [&](int64_t i) {
        Vec<T> g = load_vec(dx + i);
        const Vec<T> v = load_vec(y + i);
        for (int k = 0; k < VEC<T>; k++) g.v[k] = load(v.v[k]) <= 0.0f ? zero : g.v[k];
        store_vec(dx + i, g);
    }, [&](int64_t i) { if (load(y[i]) <= 0.0f) dx[i] = zero; });
}

#define KERNELS(T, S)                                                                                        \
    KERNEL(256, add_assign_##S, (T * y, const T* x, int64_t n)) { add_assign<T>(y, x, n); }                  \
    KERNEL(256, copy_##S, (T * y, const T* x, int64_t n)) { copy<T>(y, x, n); }                              \
    KERNEL(256, fill_##S, (T * y, float value, int64_t n)) { fill<T>(y, value, n); }                         \
    KERNEL(256, scale_##S, (T * y, float factor, int64_t n)) { scale<T>(y, factor, n); }                     \
    KERNEL(256, relu_mask_##S, (T * dx, const T* y, int64_t n)) { relu_mask<T>(dx, y, n); }
FOR_FLOATS(KERNELS)

KERNEL(256, copy_i32, (int32_t * y, const int32_t* x, int64_t n)) {
    for (int64_t i = global_thread(); i < n; i += global_threads()) y[i] = x[i];
}
