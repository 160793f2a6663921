// Kernels over a list of tensors: one launch handles up to 64 tensors. Each is cut into chunks, and one block handles
// one chunk.
//   block b    chunk b, counted across the tensors; a binary search finds its tensor   many tensors, one launch
//   thread t   vectors t, t + blockDim.x, ... of 4 elements, then single elements      accesses are coalesced
#pragma once

#include "kernel.cuh"

constexpr int MULTI_CHUNK = 8192;  // elements: 32 per thread, and some thousand blocks for a detector's parameters

// List l of tensor t begins at address[l][t]; the lists are, for instance, values and gradients. Chunks are numbered
// across the tensors of the launch.
struct MultiTensor {
    uint64_t address[4][64];
    uint64_t elements[64];
    uint32_t end[64];      // number of chunks of this tensor and of those before it
    float decay[64];       // weight decay of the tensor, where the kernel has one
    uint32_t tensors;
    uint32_t first_chunk;   // number of chunks of the previous launches
    uint32_t first_tensor;  // number of tensors of the previous launches
    uint32_t unused;
};
static_assert(sizeof(MultiTensor) == 3088, "mirror of src/ops/common/multi_tensor.rs");

// The part of a tensor that a block works on.
struct Chunk {
    uint32_t tensor;
    int32_t len;
    int64_t first;
};

__device__ __forceinline__ Chunk chunk_of_block(const MultiTensor& list) {
    uint32_t low = 0, high = list.tensors - 1;  // binary search: the first tensor whose end is past this block
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        if (list.end[middle] > blockIdx.x) high = middle;
        else low = middle + 1;
    }
    const uint32_t before = low == 0 ? 0 : list.end[low - 1];
    const int64_t first = int64_t(blockIdx.x - before) * MULTI_CHUNK, left = int64_t(list.elements[low]) - first;
    return {low, left < MULTI_CHUNK ? int32_t(left) : MULTI_CHUNK, first};
}

// Address of the chunk's first element in list `l`.
template <typename T> __device__ __forceinline__ T* chunk_begin(const MultiTensor& list, int l, const Chunk& c) {
    return reinterpret_cast<T*>(list.address[l][c.tensor]) + c.first;
}

template <int V> struct Width {
    static constexpr int value = V;
};

// Calls `f(width, first element)` for every whole vector of the chunk (width 4), then for each element after the last
// one (width 1). The block's threads share the calls.
template <typename F> __device__ __forceinline__ void over_chunk(int32_t len, F f) {
    constexpr int V = VEC<float>;
#pragma unroll 2
    for (int32_t i = int32_t(threadIdx.x) * V; i + V <= len; i += int32_t(blockDim.x) * V) f(Width<V>(), i);
    const int32_t i = len / V * V + int32_t(threadIdx.x);
    if (i < len) f(Width<1>(), i);
}
