// Rows of each image whose index is not negative: idx [B,S], out [B]. One block an image, one pass. Deterministic.
#include "common/kernel.cuh"

KERNEL(256, count_rows_i32, (int32_t * out, const int32_t* idx, uint32_t s)) {
    const int32_t* row = idx + int64_t(blockIdx.x) * s;
    int count = 0;
    for (uint32_t i = threadIdx.x; i - threadIdx.x < s; i += blockDim.x) count += __syncthreads_count(i < s && row[i] >= 0);
    if (threadIdx.x == 0) out[blockIdx.x] = count;
}
