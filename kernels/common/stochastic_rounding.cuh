// Conversion of f32 to bf16 by stochastic rounding, for optimizer state that small steps must move. The results are the
// same, bit for bit, as those of src/ops/common/stochastic_rounding.rs.
#pragma once

#include "philox.cuh"

// Rounds v to one of the two neighbouring bf16 values: to the one farther from zero if the 16 bits that are cut off
// plus the low 16 bits of `random` carry. The mean over `random` is v. A value that bf16 holds exactly does not change,
// a finite value stays finite, and NaN stays NaN.
__device__ __forceinline__ bf16 store_stochastic(float v, uint32_t random) {
    const uint32_t bits = __float_as_uint(v), magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return __ushort_as_bfloat16(0x7fff);
    uint32_t rounded = (bits + (random & 0xffffu)) >> 16;
    if (magnitude < 0x7f800000u && (rounded & 0x7fffu) == 0x7f80u) rounded -= 1;  // infinity to the largest
    return __ushort_as_bfloat16(uint16_t(rounded));
}

// Converts a value to the state's storage type S: bf16 by stochastic rounding, f32 unchanged.
template <typename S> __device__ __forceinline__ S store_state(float v, uint32_t random);
template <> __device__ __forceinline__ float store_state<float>(float v, uint32_t) { return v; }
template <> __device__ __forceinline__ bf16 store_state<bf16>(float v, uint32_t random) { return store_stochastic(v, random); }

// 32 random bits for each of V elements.
template <int V> struct Random {
    uint32_t v[V];
};

// Random bits of V elements of tensor `tensor`, beginning with element `i`. Element i has word i % 4 of block i / 4 of
// the stream. V is 4 and i a multiple of 4, or V is 1. State in f32 needs no random bits: the result is 0.
template <typename S, int V>
__device__ __forceinline__ Random<V> random_of(const int32_t* key, uint32_t tensor, uint32_t purpose, int64_t i) {
    static_assert(V == 4 || V == 1, "one block, or one word of it");
    Random<V> random = {};
    if constexpr (sizeof(S) == sizeof(bf16)) {
        const uint4 block = philox_block(key, tensor, purpose, uint32_t(i / 4));
        const uint32_t words[4] = {block.x, block.y, block.z, block.w};
#pragma unroll
        for (int k = 0; k < 4; k++) {
            if (V == 4) random.v[k % V] = words[k];
            else if (i % 4 == k) random.v[0] = words[k];
        }
    }
    return random;
}
