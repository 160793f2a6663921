// Divisor of the losses: counts [B,2] i32, y [1] f32. One block: its threads add up the images in a fixed order. Deterministic.
#include "common/reduce.cuh"

// Values of AvgFactor in src/ops/avg_factor/mod.rs.
enum : uint32_t { AVG_RPN = 0, AVG_ROI = 1, AVG_DENSE = 2, AVG_POSITIVES = 3 };

struct AvgFactorParams {
    uint32_t b, kind;
};
static_assert(sizeof(AvgFactorParams) == 8, "mirror of src/ops/avg_factor/cuda.rs");

KERNEL(256, avg_factor_f32, (float* y, const int32_t* counts, AvgFactorParams p)) {
    SHARED(int64_t, scratch, 32);
    const int64_t least = p.kind == AVG_ROI || p.kind == AVG_POSITIVES ? INT32_MIN : 1;
    int64_t mine = 0;
    for (uint32_t i = threadIdx.x; i < p.b; i += blockDim.x) {
        const int64_t positive = counts[2 * int64_t(i)], negative = counts[2 * int64_t(i) + 1];
        mine += max(positive, least) + (p.kind == AVG_DENSE || p.kind == AVG_POSITIVES ? int64_t(0) : max(negative, least));
    }
    const int64_t total = block_reduce(mine, Sum(), int64_t(0), scratch);
    if (threadIdx.x == 0) y[0] = float(max(total, int64_t(1)));
}
