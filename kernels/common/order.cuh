// The order of scores that top_k and nms share (src/ops/order.rs): descending, the lower index first among equals, NaN last.
#pragma once

#include "kernel.cuh"

// Ascending where the score goes descending; -0 equals 0; NaN is the largest.
__device__ __forceinline__ uint32_t descending_rank(float score) {
    const uint32_t bits = __float_as_uint(score + 0.0f);  // -0 + 0 = 0
    if (score != score) return 0xffffffffu;
    return bits >> 31 == 0 ? ~(bits | 0x80000000u) : bits;
}

// Ascending where (score, index) goes descending, lower index first.
__device__ __forceinline__ uint64_t descending_key(float score, uint32_t index) {
    return uint64_t(descending_rank(score)) << 32 | index;
}

// Bits that hold the numbers 0..=n.
__device__ __forceinline__ uint32_t bits_of(uint32_t n) { return 32 - uint32_t(__clz(int(n))); }

// Sorts n elements ascending with the whole block, whose threads all call it behind a barrier; `at(i)` is a reference to the
// i-th, in shared or global memory. A bitonic network: every comparison puts the smaller in front, so what lies behind n counts
// as larger and is never touched. A warp's pairs of a step up to 32 apart lie in 64 elements of its own.
template <typename At> __device__ __forceinline__ void block_sort(At at, uint32_t n) {
    for (uint32_t k = 2; k < 2 * n; k *= 2) {
        for (uint32_t j = k / 2; j > 0; j /= 2) {
            for (uint32_t pair = threadIdx.x; pair < (n + k - 1) / k * (k / 2); pair += blockDim.x) {
                const uint32_t a = (pair & ~(j - 1)) * 2 | (pair & (j - 1));
                const uint32_t b = j == k / 2 ? a ^ (k - 1) : a + j;
                if (b >= n) continue;
                const auto x = at(a), y = at(b);
                if (y < x) {
                    at(a) = y;
                    at(b) = x;
                }
            }
            if (j > 1 ? j <= WARP : k <= WARP) __syncwarp();
            else __syncthreads();
        }
    }
    __syncthreads();
}

// Number of the n ascending keys that are smaller than `key`.
__device__ __forceinline__ uint32_t lower_bound(const uint64_t* keys, uint32_t n, uint64_t key) {
    uint32_t from = 0;
    while (n > 0) {
        const uint32_t half = n / 2;
        const bool right = keys[from + half] < key;
        from = right ? from + half + 1 : from;
        n = right ? n - half - 1 : half;
    }
    return from;
}
