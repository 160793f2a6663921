// The order of scores that top_k and nms share (src/ops/common/order.rs): descending, the lower index first among
// equals, NaN last.
#pragma once

#include "kernel.cuh"

// A rank that ascends as the score descends. -0 and 0 have the same rank; NaN has the largest.
__device__ __forceinline__ uint32_t descending_rank(float score) {
    const uint32_t bits = __float_as_uint(score + 0.0f);  // -0 + 0 = 0
    if (score != score) return 0xffffffffu;
    return bits >> 31 == 0 ? ~(bits | 0x80000000u) : bits;
}

// A key that ascends as the score descends; among equal scores, as the index ascends. Keys of different indices differ.
__device__ __forceinline__ uint64_t descending_key(float score, uint32_t index) {
    return uint64_t(descending_rank(score)) << 32 | index;
}

// Number of bits that the numbers 0..=n need.
__device__ __forceinline__ uint32_t bits_of(uint32_t n) { return 32 - uint32_t(__clz(int(n))); }

// Sorts n elements ascending. All threads of the block call it, after a barrier. `at(i)` is a reference to the i-th
// element, in shared or global memory. It is a bitonic network in which every comparison puts the smaller element
// first: positions from n on count as larger and are never touched.
//   thread t   compares pairs t, t + blockDim.x, ... of each step; an element is in at most one pair: no race in a step
//   warp       has 32 neighbouring pairs at a time. Where two successive steps keep these pairs within the same 64
//              elements, no other warp touches them: __syncwarp is enough between them. Else: __syncthreads
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

// Number of keys that are smaller than `key`, among n keys in ascending order.
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
