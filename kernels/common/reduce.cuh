// Sums and maxima over warps and blocks. Blocks have whole warps along x. The order is fixed: results are the same on
// every run.
//   lane l of warp w   brings one value; shuffles combine the warp's 32 values               no shared memory
//   block              one lane of each warp w writes scratch[w]; shuffles combine these     at most 32 warps: one step
#pragma once

#include "kernel.cuh"

struct Sum {
    template <typename T> __device__ __forceinline__ T operator()(T a, T b) const { return a + b; }
};

// The larger value; for floats, a number wins over NaN, as in fmaxf.
struct Max {
    __device__ __forceinline__ float operator()(float a, float b) const { return fmaxf(a, b); }
    template <typename T> __device__ __forceinline__ T operator()(T a, T b) const { return a < b ? b : a; }
};

// Combines the values of the 32 lanes. Every lane gets the result.
template <typename T, typename Op> __device__ __forceinline__ T warp_reduce(T v, Op op) {
    for (int d = WARP / 2; d > 0; d /= 2) v = op(v, __shfl_xor_sync(FULL_WARP, v, d));
    return v;
}

// The largest of `n` elements, -inf if there is none; a number wins over NaN. Every lane gets the result. Lane l reads
// l, l + 32, ...
__device__ __forceinline__ float warp_max(const float* x, uint32_t n) {
    float v = __int_as_float(int(0xff800000u));  // -inf
    for (uint32_t i = lane_id(); i < n; i += WARP) v = fmaxf(v, x[i]);
    return warp_reduce(v, Max());
}

// Combines the values of a block of at most 1024 threads, all of which call it. Every thread gets the result.
// `identity` is the neutral element of `op`. `scratch` is shared memory of 32 elements; the caller may reuse it at
// once.
template <typename T, typename Op> __device__ __forceinline__ T block_reduce(T v, Op op, T identity, T* scratch) {
    v = warp_reduce(v, op);
    if (lane_id() == 0) scratch[warp_id()] = v;
    __syncthreads();
    const int warps = int(blockDim.x) / WARP;
    v = warp_reduce(lane_id() < warps ? scratch[lane_id()] : identity, op);
    __syncthreads();  // the next call overwrites scratch
    return v;
}

// Sum of the values of the lower lanes.
template <typename T> __device__ __forceinline__ T warp_exclusive_sum(T v) {
    T sum = v;
    for (int d = 1; d < WARP; d *= 2) {
        const T other = __shfl_up_sync(FULL_WARP, sum, d);
        if (lane_id() >= d) sum = sum + other;
    }
    return sum - v;
}

// Sum of the values of the block's lower threads, for integers; `total` becomes the sum over all threads. All threads
// call it. `scratch` is shared memory of 33 elements; the caller may reuse it at once.
template <typename T> __device__ __forceinline__ T block_exclusive_sum(T v, T& total, T* scratch) {
    const T before = warp_exclusive_sum(v);
    if (lane_id() == WARP - 1) scratch[warp_id()] = before + v;
    __syncthreads();
    if (warp_id() == 0) {
        const int warps = int(blockDim.x) / WARP;
        const T mine = lane_id() < warps ? scratch[lane_id()] : T(0);
        const T base = warp_exclusive_sum(mine);
        __syncwarp();
        scratch[lane_id()] = base;
        if (lane_id() == WARP - 1) scratch[WARP] = base + mine;
    }
    __syncthreads();
    const T out = scratch[warp_id()] + before;
    total = scratch[WARP];
    __syncthreads();  // the next call overwrites scratch
    return out;
}
