// Classes of samples: gt, idx, y [B,S], gt_labels [B,G], all i32. One thread a sample, one pass. Deterministic.
#include "common/kernel.cuh"

struct LabelsParams {
    uint32_t b, s, g;
    int32_t background;
};
static_assert(sizeof(LabelsParams) == 16, "mirror of src/ops/labels/cuda.rs");

KERNEL(256, labels_i32, (int32_t * y, const int32_t* gt, const int32_t* idx, const int32_t* gt_labels, LabelsParams p)) {
    const int64_t count = int64_t(p.b) * p.s;
    for (int64_t r = global_thread(); r < count; r += global_threads()) {
        const int64_t i = gt[r];
        int32_t label = p.background;
        if (i >= 0 && i < int64_t(p.g)) label = gt_labels[r / p.s * p.g + i];
        y[r] = idx[r] < 0 ? -1 : label;
    }
}
