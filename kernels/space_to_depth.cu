// Space to depth. x, dx [N,H,W,C] T; y, dy [N,OH,OW,k,k,C] T, OH = ceil(H / k), OW = ceil(W / k). y is 0 outside the
// map. One pass. Reads and writes are both contiguous over k C elements, one row of a k x k block. Deterministic.
#include "common/kernel.cuh"

struct SpaceToDepthParams {
    uint32_t n, h, w, c, k;
    uint32_t vector;  // elements of a vector: 16 or 8 bytes that no end of a block's or map's row cuts, or 1
};
static_assert(sizeof(SpaceToDepthParams) == 24, "mirror of src/ops/space_to_depth/cuda.rs");

// thread i   vector i of y, then i + grid threads: neighbouring threads write neighbouring addresses
//            line = i / (k C / V) is (n, oh, ow, kh); the same line of k C elements is contiguous in x too
//            one thread owns each output vector: nothing is shared
template <typename T, int V, typename Index> __device__ __forceinline__ void fwd(T* y, const T* x, const SpaceToDepthParams& p) {
    const uint32_t oh = (p.h + p.k - 1) / p.k, ow = (p.w + p.k - 1) / p.k, run = p.k * p.c, row = p.w * p.c, vectors = run / V;
    const Index count = Index(int64_t(p.n) * oh * ow * p.k * vectors);
    for (Index i = Index(global_thread()); i < count; i += Index(global_threads())) {
        const uint32_t at = uint32_t(i % vectors) * V;
        const Index line = i / vectors;  // one row of a k x k block
        const uint32_t kh = uint32_t(line % p.k);
        const Index block = line / p.k;
        const uint32_t j = uint32_t(block % ow), h = uint32_t(block / ow % oh) * p.k + kh;
        const int64_t n = block / ow / oh;
        const uint32_t from = j * run + at;
        Pack<T, V> v;
        if (h < p.h && from < row) {
            v = load_pack<V>(x + (n * p.h + h) * row + from);
        } else {
#pragma unroll
            for (int q = 0; q < V; q++) v.v[q] = store<T>(0.0f);
        }
        store_pack(y + int64_t(i) * V, v);
    }
}

// thread i   vector i of dx, then i + grid threads: neighbouring threads write neighbouring addresses
//            line = i / (W C / V) is (n, h); dy is read in contiguous pieces of at most k C elements
//            each cell of x is in one block: nothing is added, and dy outside the map is not read
template <typename T, int V, typename Index> __device__ __forceinline__ void bwd(T* dx, const T* dy, const SpaceToDepthParams& p) {
    const uint32_t oh = (p.h + p.k - 1) / p.k, ow = (p.w + p.k - 1) / p.k, run = p.k * p.c, vectors = p.w * p.c / V;
    const Index count = Index(int64_t(p.n) * p.h * vectors);
    for (Index i = Index(global_thread()); i < count; i += Index(global_threads())) {
        const uint32_t at = uint32_t(i % vectors) * V, j = at / run;
        const Index line = i / vectors;
        const uint32_t h = uint32_t(line % p.h);
        const int64_t n = line / p.h, block = (n * oh + h / p.k) * ow + j;
        store_pack(dx + int64_t(i) * V, load_pack<V>(dy + (block * p.k + h % p.k) * run + (at - j * run)));
    }
}

// Whether 32 bits can count y's elements and one grid step more: divisions of 64 bits cost more than the memory.
__device__ __forceinline__ bool few(const SpaceToDepthParams& p) {
    return uint64_t(p.n) * (p.h + p.k) * (p.w + p.k) * p.c < (1u << 31);
}

#define KERNELS(T, S)                                                                              \
    KERNEL(256, space_to_depth_fwd_##S, (T * y, const T* x, SpaceToDepthParams p)) {               \
        if (p.vector == VEC<T> && few(p)) fwd<T, VEC<T>, uint32_t>(y, x, p);                       \
        else if (p.vector == VEC<T>) fwd<T, VEC<T>, int64_t>(y, x, p);                             \
        else if (p.vector > 1) fwd<T, VEC<T> / 2, int64_t>(y, x, p);                               \
        else fwd<T, 1, int64_t>(y, x, p);                                                          \
    }                                                                                              \
    KERNEL(256, space_to_depth_bwd_##S, (T * dx, const T* dy, SpaceToDepthParams p)) {             \
        if (p.vector == VEC<T> && few(p)) bwd<T, VEC<T>, uint32_t>(dx, dy, p);                     \
        else if (p.vector == VEC<T>) bwd<T, VEC<T>, int64_t>(dx, dy, p);                           \
        else if (p.vector > 1) bwd<T, VEC<T> / 2, int64_t>(dx, dy, p);                             \
        else bwd<T, 1, int64_t>(dx, dy, p);                                                        \
    }
FOR_FLOATS(KERNELS)
