// Losses: each block leaves its sum in f64, then one block folds them and divides by a number on the device. Deterministic.
#pragma once

#include "reduce.cuh"

__device__ __forceinline__ float scaled_loss(double sum, const float* avg, float weight) {
    return float(double(weight) * sum / double(avg[0]));
}

// The sum of `mine` over the block goes to the block's slot; of a single block it is the loss already, and no fold follows.
// `scratch` is shared memory of 32 elements.
__device__ __forceinline__ void put_loss(
    float* loss, double* sums, double mine, const float* avg, float weight, double* scratch) {
    const double sum = block_reduce(mine, Sum(), 0.0, scratch);
    if (threadIdx.x != 0) return;
    if (gridDim.x == 1) loss[0] = scaled_loss(sum, avg, weight);
    else sums[blockIdx.x] = sum;
}

// The loss from `n` slots, by one block.
__device__ __forceinline__ void fold_loss(
    float* loss, const double* sums, const float* avg, uint32_t n, float weight, double* scratch) {
    double mine = 0.0;
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) mine += sums[i];
    const double sum = block_reduce(mine, Sum(), 0.0, scratch);
    if (threadIdx.x == 0) loss[0] = scaled_loss(sum, avg, weight);
}

// `loss = weight / avg * sum of n slots`: the second launch of a loss.
struct FoldParams {
    uint32_t n;
    float weight;
};
static_assert(sizeof(FoldParams) == 8, "mirror of src/ops/partial.rs");
