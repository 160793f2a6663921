// Softmax over the last dimension. x, y [M,K] f32. Three passes over a row: maximum, sum of exponentials, quotients. x
// is read from memory once (the row stays in cache), y is written once. Deterministic.
#include "common/reduce.cuh"

struct SoftmaxParams {
    uint32_t m, k;
};
static_assert(sizeof(SoftmaxParams) == 8, "mirror of src/ops/softmax/cuda.rs");

// warp w of the grid   row w, then w + grid warps: one warp owns a row, sums stay in registers
// lane l               columns l, l + 32, ...: neighbouring lanes read and write neighbouring addresses
//                      shuffles combine the 32 lanes' values in a fixed order; every lane gets the result
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
