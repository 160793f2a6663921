// Softmax cross-entropy from logits. x, dx [M,C] f32; labels [M] i32; avg, dy, loss [1] f32; sums [blocks] f64. Labels
// outside 0 .. C - 1 are ignored. Passes over a row: maximum, then exponentials (the row stays in cache), in f32; a
// row's loss and further sums are in f64. One block folds the blocks' sums, unless there is only one block. Backward
// reads x once from memory and writes dx once. Deterministic.
//   warp w of the grid   row w, then w + grid warps: one warp owns a row, sums stay in registers
//   lane l               columns l, l + 32, ...: neighbouring lanes, neighbouring addresses; shuffles combine the lanes
//                        forward, lane 0 adds the row's loss, then the block reduces: no atomics, a fixed order
#include "common/loss.cuh"

struct SoftmaxCeParams {
    uint32_t m, c;
    float weight;
};
static_assert(sizeof(SoftmaxCeParams) == 12, "mirror of src/ops/softmax_ce/cuda.rs");

__device__ __forceinline__ bool is_class(int32_t label, uint32_t c) { return label >= 0 && uint32_t(label) < c; }

// Sum of exp(x - top) over the row's elements except the label's. Every lane gets the result.
__device__ __forceinline__ float others_of(const float* x, uint32_t c, uint32_t label, float top) {
    float sum = 0.0f;
    for (uint32_t i = lane_id(); i < c; i += WARP) sum += i == label ? 0.0f : expf(x[i] - top);
    return warp_reduce(sum, Sum());
}

KERNEL(256, softmax_ce_fwd_f32,
       (float* loss, double* sums, const float* x, const int32_t* labels, const float* avg, SoftmaxCeParams p)) {
    SHARED(double, scratch, 32);
    double sum = 0.0;
    for (int64_t row = global_thread() / WARP; row < p.m; row += global_threads() / WARP) {
        const int32_t label = labels[row];
        if (!is_class(label, p.c)) continue;
        const float* xr = x + row * p.c;
        const float top = warp_max(xr, p.c), own = xr[label];
        const float others = others_of(xr, p.c, uint32_t(label), top);
        // ln sum exp(x) - x[label], written as a sum of terms that are not negative: a small loss keeps its digits.
        const float rest = own == top ? log1pf(others) : logf(expf(own - top) + others);
        if (lane_id() == 0) sum += double(top) - double(own) + double(rest);
    }
    put_loss(loss, sums, sum, avg, p.weight, scratch);
}

KERNEL(1024, softmax_ce_fold_f32, (float* loss, const double* sums, const float* avg, FoldParams p)) {
    SHARED(double, scratch, 32);
    fold_loss(loss, sums, avg, p.n, p.weight, scratch);
}

KERNEL(256, softmax_ce_bwd_f32,
       (float* dx, const float* dy, const float* x, const int32_t* labels, const float* avg, SoftmaxCeParams p)) {
    const float scale = dy[0] * p.weight / avg[0];
    for (int64_t row = global_thread() / WARP; row < p.m; row += global_threads() / WARP) {
        const float* xr = x + row * p.c;
        float* dr = dx + row * p.c;
        const int32_t label = labels[row];
        if (!is_class(label, p.c)) {
            for (uint32_t i = lane_id(); i < p.c; i += WARP) dr[i] = 0.0f;
            continue;
        }
        const float top = warp_max(xr, p.c);
        const float others = others_of(xr, p.c, uint32_t(label), top);
        const float sum = others + expf(xr[label] - top);
        for (uint32_t i = lane_id(); i < p.c; i += WARP) {
            // At the label, p - 1 is -others / sum, without cancellation.
            dr[i] = i == uint32_t(label) ? -scale * (others / sum) : expf(xr[i] - top) * (scale / sum);
        }
    }
}
