// Copies one input of a concatenation. y, dy [N, stride] T, x, dx [N, len] T; an image's `len` elements begin at
// element `at` of its row of y. One pass. Deterministic.
//   block (x, y)   image y, then y + gridDim.y, ...
//   thread i       vectors i, i + threads along x, ... of the image's len: neighbouring addresses
//                  16 bytes a vector, or one element if stride, at or len is no multiple of it (alignment)
#include "common/kernel.cuh"

struct ConcatRowsParams {
    int64_t n, stride, at, len;
};
static_assert(sizeof(ConcatRowsParams) == 32, "mirror of src/ops/concat_rows/cuda.rs");

// Copies `len` elements of each row of x to y. Rows of x are `from` elements apart, rows of y `to`.
template <typename T, int V> __device__ void copy_rows(T* y, const T* x, int64_t to, int64_t from, ConcatRowsParams p) {
    for (int64_t image = blockIdx.y; image < p.n; image += gridDim.y) {
        for (int64_t i = global_thread(); i < p.len / V; i += global_threads()) {
            store_pack(y + image * to + i * V, load_pack<V>(x + image * from + i * V));
        }
    }
}

template <typename T> __device__ __forceinline__ bool fills_vectors(ConcatRowsParams p) {
    return (p.stride | p.at | p.len) % VEC<T> == 0;
}

#define KERNELS(T, S)                                                                                \
    KERNEL(256, concat_rows_fwd_##S, (T * y, const T* x, ConcatRowsParams p)) {                      \
        if (fills_vectors<T>(p)) copy_rows<T, VEC<T>>(y + p.at, x, p.stride, p.len, p);              \
        else copy_rows<T, 1>(y + p.at, x, p.stride, p.len, p);                                       \
    }                                                                                                \
    KERNEL(256, concat_rows_bwd_##S, (T * dx, const T* dy, ConcatRowsParams p)) {                    \
        if (fills_vectors<T>(p)) copy_rows<T, VEC<T>>(dx, dy + p.at, p.len, p.stride, p);            \
        else copy_rows<T, 1>(dx, dy + p.at, p.len, p.stride, p);                                     \
    }
FOR_FLOATS(KERNELS)
