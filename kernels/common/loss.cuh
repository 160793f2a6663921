// Sums of losses: each block writes its sum in f64, then one block adds the sums and divides by avg[0], which is on the
// device. Deterministic.
//   thread t, put_loss   brings its own sum, then the block reduces           thread 0 writes its slot: no atomics
//   thread t, fold_loss  slots t, t + blockDim.x, ..., then the block reduces  one block: a fixed order of sums
#pragma once

#include "reduce.cuh"

__device__ __forceinline__ float scaled_loss(double sum, const float* avg, float weight) {
    return float(double(weight) * sum / double(avg[0]));
}

// Sums `mine` over the block and writes the sum to the block's slot. If the grid has a single block, writes the loss
// instead, and no fold follows. `scratch` is shared memory of 32 elements.
__device__ __forceinline__ void put_loss(
    float* loss, double* sums, double mine, const float* avg, float weight, double* scratch) {
    const double sum = block_reduce(mine, Sum(), 0.0, scratch);
    if (threadIdx.x != 0) return;
    if (gridDim.x == 1) loss[0] = scaled_loss(sum, avg, weight);
    else sums[blockIdx.x] = sum;
}

// Computes the loss from `n` slots. One block calls it.
__device__ __forceinline__ void fold_loss(
    float* loss, const double* sums, const float* avg, uint32_t n, float weight, double* scratch) {
    double mine = 0.0;
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) mine += sums[i];
    const double sum = block_reduce(mine, Sum(), 0.0, scratch);
    if (threadIdx.x == 0) loss[0] = scaled_loss(sum, avg, weight);
}

// Parameters of the second launch of a loss: `loss = weight / avg * sum of n slots`.
struct FoldParams {
    uint32_t n;
    float weight;
};
static_assert(sizeof(FoldParams) == 8, "mirror of src/ops/common/partial.rs");
