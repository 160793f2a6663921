// Assignment with ground truth in front: out [B,G+P] holds the numbers of the ground truths that are there, then assigned [B,P]. One
// thread an element, one pass. Deterministic.
#include "common/kernel.cuh"

struct WithGtParams {
    uint32_t b, g, p;
};
static_assert(sizeof(WithGtParams) == 12, "mirror of src/ops/with_gt/cuda.rs");

KERNEL(256, with_gt_i32, (int32_t * out, const int32_t* assigned, const int32_t* gt_count, WithGtParams p)) {
    constexpr int32_t INVALID = -2;
    const int64_t width = int64_t(p.g) + p.p, count = p.b * width;
    for (int64_t i = global_thread(); i < count; i += global_threads()) {
        const int64_t image = i / width, column = i - image * width;
        const int64_t proposal = column - p.g;
        out[i] = proposal >= 0 ? assigned[image * p.p + proposal] : column < gt_count[image] ? int32_t(column) + 1 : INVALID;
    }
}
