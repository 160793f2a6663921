// Residual sum with drop path. y, x, branch, dy, dbranch [N,P] T; key [6] i32, or null for the plain sum. One pass; a
// dropped branch is not read. Deterministic: the draw depends only on key, sample, purpose and layer.
//   block (x, y)   sample y, then y + gridDim.y, ...; thread 0 draws, and shared memory gives the factor to the block
//   thread i       vectors i, i + threads along x, ... of the sample: neighbouring threads use neighbouring addresses
//                  16 bytes a vector, or one element if P is no multiple of it
#include "common/philox.cuh"

struct DropPathParams {
    int64_t sample;  // P
    uint32_t n, purpose;
    uint32_t drops;  // the branch is dropped if the draw, a number below 2^24, is below this
    float scale;
    uint32_t layer, unused;
};
static_assert(sizeof(DropPathParams) == 32, "mirror of src/ops/drop_path/cuda.rs");

// Returns the branch's factor in sample n: 0, `scale`, or 1 without a key. All threads of the block call it.
__device__ __forceinline__ float factor(const int32_t* key, uint32_t n, const DropPathParams& p, float* shared) {
    if (!key) return 1.0f;
    __syncthreads();  // the previous sample's factor has been read
    if (threadIdx.x == 0) *shared = philox_block(key, n, p.purpose, p.layer).x >> 8 < p.drops ? 0.0f : p.scale;
    __syncthreads();
    return *shared;
}

// Calls `f(first element)` for each of this thread's vectors of a sample.
template <int V, typename F> __device__ __forceinline__ void over_sample(const DropPathParams& p, F f) {
    for (int64_t i = global_thread() * V; i < p.sample; i += global_threads() * V) f(i);
}

template <typename T, int V>
__device__ __forceinline__ void fwd(T* y, const T* x, const T* branch, const int32_t* key, const DropPathParams& p, float* shared) {
    for (uint32_t n = blockIdx.y; n < p.n; n += gridDim.y) {
        const float s = factor(key, n, p, shared);
        const int64_t first = n * p.sample;
        over_sample<V>(p, [&](int64_t i) {
            Pack<T, V> a = load_pack<V>(x + first + i);
            if (s != 0.0f) {
                const Pack<T, V> b = load_pack<V>(branch + first + i);
#pragma unroll
                for (int v = 0; v < V; v++) a.v[v] = store<T>(fmaf(s, load(b.v[v]), load(a.v[v])));
            }
            store_pack(y + first + i, a);
        });
    }
}

template <typename T, int V>
__device__ __forceinline__ void bwd(T* dbranch, const T* dy, const int32_t* key, const DropPathParams& p, float* shared) {
    for (uint32_t n = blockIdx.y; n < p.n; n += gridDim.y) {
        const float s = factor(key, n, p, shared);
        const int64_t first = n * p.sample;
        over_sample<V>(p, [&](int64_t i) {
            Pack<T, V> a;
            if (s != 0.0f) a = load_pack<V>(dy + first + i);
#pragma unroll
            for (int v = 0; v < V; v++) a.v[v] = store<T>(s != 0.0f ? s * load(a.v[v]) : 0.0f);
            store_pack(dbranch + first + i, a);
        });
    }
}

#define KERNELS(T, S)                                                                                                    \
    KERNEL(256, drop_path_fwd_##S, (T * y, const T* x, const T* branch, const int32_t* key, DropPathParams p)) {         \
        SHARED(float, shared, 1);                                                                                        \
        if (p.sample % VEC<T> == 0) fwd<T, VEC<T>>(y, x, branch, key, p, shared);                                        \
        else fwd<T, 1>(y, x, branch, key, p, shared);                                                                    \
    }                                                                                                                    \
    KERNEL(256, drop_path_bwd_##S, (T * dbranch, const T* dy, const int32_t* key, DropPathParams p)) {                   \
        SHARED(float, shared, 1);                                                                                        \
        if (p.sample % VEC<T> == 0) bwd<T, VEC<T>>(dbranch, dy, key, p, shared);                                         \
        else bwd<T, 1>(dbranch, dy, key, p, shared);                                                                     \
    }
FOR_FLOATS(KERNELS)
