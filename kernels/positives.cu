// Columns of positives: gt [B,S], out [B,P]. One thread an element, one pass. Deterministic.
#include "common/kernel.cuh"

struct PositivesParams {
    uint32_t b, s, p, first;
};
static_assert(sizeof(PositivesParams) == 16, "mirror of src/ops/positives/cuda.rs");

KERNEL(256, positives_i32, (int32_t * out, const int32_t* gt, PositivesParams p)) {
    const int64_t count = int64_t(p.b) * p.p;
    for (int64_t i = global_thread(); i < count; i += global_threads()) {
        const int64_t image = i / p.p, column = p.first + (i - image * p.p);
        out[i] = gt[image * p.s + column] >= 0 ? int32_t(column) : -1;
    }
}
