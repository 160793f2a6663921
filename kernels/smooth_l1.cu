// Smooth L1 loss. deltas, dx [M,4K] f32; targets [M,4] f32; labels [M] i32; avg, dy, loss [1] f32; sums [blocks] f64.
// Only the four columns of the row's label count; other labels than 0 .. K - 1 are ignored. A row's sum is in f32,
// further sums are in f64. One block folds the blocks' sums, unless there is only one block. One pass. Deterministic.
#include "common/loss.cuh"

struct SmoothL1Params {
    uint32_t m, k;
    float beta, weight;
};
static_assert(sizeof(SmoothL1Params) == 16, "mirror of src/ops/smooth_l1/cuda.rs");

// thread i of the grid   row i: the grid has at least M threads, so there is no loop
//                        one 16-byte load each of deltas (the label's group) and targets; other columns are not read
//                        then the block reduces its 1024 sums: no atomics, a fixed order
KERNEL(1024, smooth_l1_fwd_f32, (float* loss, double* sums, const float* deltas, const float* targets, const int32_t* labels,
                                 const float* avg, SmoothL1Params p)) {
    SHARED(double, scratch, 32);
    const int64_t row = global_thread();
    const int32_t label = row < p.m ? labels[row] : -1;
    float sum = 0.0f;
    if (label >= 0 && uint32_t(label) < p.k) {
        const Pack<float, 4> d = load_pack<4>(deltas + (row * p.k + label) * 4), t = load_pack<4>(targets + row * 4);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const float e = fabsf(d.v[j] - t.v[j]);
            sum += e < p.beta ? 0.5f * e * e / p.beta : e - 0.5f * p.beta;
        }
    }
    put_loss(loss, sums, double(sum), avg, p.weight, scratch);
}

KERNEL(1024, smooth_l1_fold_f32, (float* loss, const double* sums, const float* avg, FoldParams p)) {
    SHARED(double, scratch, 32);
    fold_loss(loss, sums, avg, p.n, p.weight, scratch);
}

__device__ __forceinline__ float slope(float e, float beta) {
    if (fabsf(e) < beta) return e / beta;
    return e > 0.0f ? 1.0f : e < 0.0f ? -1.0f : e;  // e is 0 or NaN
}

// thread i   group i of the M*K groups of four columns, then i + grid threads; row = i / K
//            writes 16 bytes, zeros unless the group is the label's: every element of dx is written once
//            neighbouring threads write neighbouring addresses
KERNEL(256, smooth_l1_bwd_f32, (float* dx, const float* dy, const float* deltas, const float* targets, const int32_t* labels,
                                const float* avg, SmoothL1Params p)) {
    const float scale = dy[0] * p.weight / avg[0];
    const int64_t groups = int64_t(p.m) * p.k;
    for (int64_t i = global_thread(); i < groups; i += global_threads()) {
        const int64_t row = i / p.k;
        Pack<float, 4> out = {};
        if (labels[row] == i - row * p.k) {
            const Pack<float, 4> d = load_pack<4>(deltas + i * 4), t = load_pack<4>(targets + row * 4);
#pragma unroll
            for (int j = 0; j < 4; j++) out.v[j] = scale * slope(d.v[j] - t.v[j], p.beta);
        }
        store_pack(dx + i * 4, out);
    }
}
