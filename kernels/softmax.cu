// Softmax over the last dimension. x, y [M,K] f32. One warp a row: its largest, the sum of exponentials, the quotients; x comes
// from memory once (a row stays in cache), y is written once. Deterministic.
#include "common/reduce.cuh"

struct SoftmaxParams {
    uint32_t m, k;
};
static_assert(sizeof(SoftmaxParams) == 8, "mirror of src/ops/softmax/cuda.rs");

KERNEL(256, softmax_f32, (float* y, const float* x, SoftmaxParams p)) {
    for (int64_t row = global_thread() / WARP; row < p.m; row += global_threads() / WARP) {
        const float* xr = x + row * p.k;
        float* yr = y + row * p.k;
        const float top = warp_max(xr, p.k);
        float sum = 0.0f;
        for (uint32_t i = lane_id(); i < p.k; i += WARP) sum += expf(xr[i] - top);
        sum = warp_reduce(sum, Sum());
        for (uint32_t i = lane_id(); i < p.k; i += WARP) yr[i] = expf(xr[i] - top) / sum;
    }
}
