// FPN's top-down step: y = lateral + upsampled top. y, lateral [N,H,W,C] T; top [N,HT,WT,C] T. Nearest neighbour: the
// source of pixel h is h HT / H, rounded down. Forward: one pass. Backward: each pixel of dtop is the sum over the
// pixels of dy whose source it is, in order of the pixels, in f32. Deterministic.
#include "common/kernel.cuh"

struct UpsampleAddParams {
    uint32_t n, ht, wt, h, w, c;
};
static_assert(sizeof(UpsampleAddParams) == 24, "mirror of src/ops/upsample_add/cuda.rs");

// thread i   vector i of y, then i + grid threads; pixel = i / (C / V), channels from (i % (C / V)) V on
//            16 bytes a vector, or one channel (see KERNELS below): neighbouring threads use neighbouring channels
//            one thread owns each vector of y; a pixel of top is read once for each pixel that it goes to
template <typename T, int V, typename Index>
__device__ void upsample_add_fwd(T* y, const T* top, const T* lateral, UpsampleAddParams p) {
    const uint32_t vectors = p.c / V;
    const Index count = Index(int64_t(p.n) * p.h * p.w * vectors);
    for (Index i = Index(global_thread()); i < count; i += Index(global_threads())) {
        const uint32_t c = uint32_t(i % vectors) * V;
        const Index pixel = i / vectors;
        const uint32_t w = uint32_t(pixel % p.w), h = uint32_t(pixel / p.w % p.h);
        const int64_t n = pixel / p.w / p.h;
        const uint32_t ht = uint32_t(uint64_t(h) * p.ht / p.h), wt = uint32_t(uint64_t(w) * p.wt / p.w);
        const T* from = top + ((n * p.ht + ht) * p.wt + wt) * p.c + c;
        const int64_t at = int64_t(pixel) * p.c + c;
        Pack<T, V> a = load_pack<V>(lateral + at);
        const Pack<T, V> b = load_pack<V>(from);
        for (int k = 0; k < V; k++) a.v[k] = store<T>(load(a.v[k]) + load(b.v[k]));
        store_pack(y + at, a);
    }
}

// Whether 32 bits can count the elements and one grid step more: divisions of 64 bits cost more than the memory.
__device__ __forceinline__ bool few(uint32_t n, uint32_t h, uint32_t w, uint32_t c) { return uint64_t(n) * h * w * c < (1u << 31); }

// Returns the first of `to` cells whose source, one of `from` cells, is `i` or later.
__device__ __forceinline__ uint32_t first_cell(uint32_t i, uint32_t from, uint32_t to) {
    return uint32_t((uint64_t(i) * to + from - 1) / from);
}

// thread i   vector i of dtop, then i + grid threads; pixel and channels as in the forward pass
//            sums rows h0 .. h1 - 1 x columns w0 .. w1 - 1 of dy in registers, row by row
//            one thread owns each vector of dtop: no atomics, a fixed order of sums
template <typename T, int V, typename Index> __device__ void upsample_add_bwd(T* dtop, const T* dy, UpsampleAddParams p) {
    const uint32_t vectors = p.c / V;
    const Index count = Index(int64_t(p.n) * p.ht * p.wt * vectors);
    for (Index i = Index(global_thread()); i < count; i += Index(global_threads())) {
        const uint32_t c = uint32_t(i % vectors) * V;
        const Index pixel = i / vectors;
        const uint32_t wt = uint32_t(pixel % p.wt), ht = uint32_t(pixel / p.wt % p.ht);
        const int64_t n = pixel / p.wt / p.ht;
        const uint32_t h1 = first_cell(ht + 1, p.ht, p.h), w0 = first_cell(wt, p.wt, p.w), w1 = first_cell(wt + 1, p.wt, p.w);
        float sum[V] = {};
        for (uint32_t h = first_cell(ht, p.ht, p.h); h < h1; h++) {
            for (uint32_t w = w0; w < w1; w++) {
                const Pack<T, V> g = load_pack<V>(dy + ((n * p.h + h) * p.w + w) * p.c + c);
                for (int k = 0; k < V; k++) sum[k] += load(g.v[k]);
            }
        }
        Pack<T, V> out;
        for (int k = 0; k < V; k++) out.v[k] = store<T>(sum[k]);
        store_pack(dtop + int64_t(pixel) * p.c + c, out);
    }
}

#define KERNELS(T, S)                                                                                           \
    KERNEL(256, upsample_add_fwd_##S, (T * y, const T* top, const T* lateral, UpsampleAddParams p)) {           \
        if (p.c % VEC<T> == 0 && few(p.n, p.h, p.w, p.c)) upsample_add_fwd<T, VEC<T>, uint32_t>(y, top, lateral, p); \
        else upsample_add_fwd<T, 1, int64_t>(y, top, lateral, p);                                               \
    }                                                                                                           \
    KERNEL(256, upsample_add_bwd_##S, (T * dtop, const T* dy, UpsampleAddParams p)) {                           \
        if (p.c % VEC<T> == 0 && few(p.n, p.ht, p.wt, p.c)) upsample_add_bwd<T, VEC<T>, uint32_t>(dtop, dy, p);  \
        else upsample_add_bwd<T, 1, int64_t>(dtop, dy, p);                                                      \
    }
FOR_FLOATS(KERNELS)
