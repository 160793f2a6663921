// Kernels over a list of tensors: one launch works on up to 64, each cut into chunks, a block a chunk.
#pragma once

#include "kernel.cuh"

constexpr int MULTI_CHUNK = 8192;  // elements: 32 a thread, and some thousand blocks for a detector's parameters

// List l of tensor t begins at address[l][t]. Chunks are numbered through the tensors.
struct MultiTensor {
    uint64_t address[4][64];
    uint64_t elements[64];
    uint32_t end[64];      // chunks of this tensor and those before it
    float decay[64];       // of the tensor, where the kernel has one
    uint32_t tensors;
    uint32_t first_chunk;   // chunks of the launches before
    uint32_t first_tensor;  // tensors of the launches before
    uint32_t unused;
};
static_assert(sizeof(MultiTensor) == 3088, "mirror of src/ops/multi_tensor.rs");

// What a block works on.
struct Chunk {
    uint32_t tensor;
    int32_t len;
    int64_t first;
};

__device__ __forceinline__ Chunk chunk_of_block(const MultiTensor& list) {
    uint32_t low = 0, high = list.tensors - 1;  // the first tensor that ends behind this block
    while (low < high) {
        const uint32_t middle = (low + high) / 2;
        if (list.end[middle] > blockIdx.x) high = middle;
        else low = middle + 1;
    }
    const uint32_t before = low == 0 ? 0 : list.end[low - 1];
    const int64_t first = int64_t(blockIdx.x - before) * MULTI_CHUNK, left = int64_t(list.elements[low]) - first;
    return {low, left < MULTI_CHUNK ? int32_t(left) : MULTI_CHUNK, first};
}

// Where the chunk begins in list `l`.
template <typename T> __device__ __forceinline__ T* chunk_begin(const MultiTensor& list, int l, const Chunk& c) {
    return reinterpret_cast<T*>(list.address[l][c.tensor]) + c.first;
}

template <int V> struct Width {
    static constexpr int value = V;
};

// Calls `f(width, first element)` for every whole vector of the chunk, then for the elements behind, by the block's threads.
template <typename F> __device__ __forceinline__ void over_chunk(int32_t len, F f) {
    constexpr int V = VEC<float>;
#pragma unroll 2
    for (int32_t i = int32_t(threadIdx.x) * V; i + V <= len; i += int32_t(blockDim.x) * V) f(Width<V>(), i);
    const int32_t i = len / V * V + int32_t(threadIdx.x);
    if (i < len) f(Width<1>(), i);
}
