// Philox4x32-10 (Salmon et al. 2011): the same numbers as src/philox.rs, bit for bit.
#pragma once

#include "kernel.cuh"

__device__ __forceinline__ uint4 philox4x32_10(uint4 c, uint2 k) {
    for (int round = 0; round < 10; round++) {
        const uint32_t lo0 = 0xD2511F53u * c.x, hi0 = __umulhi(0xD2511F53u, c.x);
        const uint32_t lo1 = 0xCD9E8D57u * c.z, hi1 = __umulhi(0xCD9E8D57u, c.z);
        c = make_uint4(hi1 ^ c.y ^ k.x, lo1, hi0 ^ c.w ^ k.y, lo0);
        k = make_uint2(k.x + 0x9E3779B9u, k.y + 0xBB67AE85u);  // golden ratio, sqrt(3) - 1
    }
    return c;
}

// Block `index`, four words, of the stream of (seed, stage, step, image, purpose): the same as `Stream::block` on the
// host. `key` has six words that are the same for a whole pass: seed (low, high), stage, step (low, high), first image.
__device__ __forceinline__ uint4 philox_block(const int32_t* key, uint32_t image, uint32_t purpose, uint32_t index) {
    const uint32_t c3 = (uint32_t(key[2]) << 24) | (purpose << 16) | (uint32_t(key[4]) & 0xFFFFu);
    const uint4 counter = make_uint4(index, uint32_t(key[5]) + image, uint32_t(key[3]), c3);
    return philox4x32_10(counter, make_uint2(uint32_t(key[0]), uint32_t(key[1])));
}
