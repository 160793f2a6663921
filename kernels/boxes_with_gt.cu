// Ground truth in front of proposals: out [B,G+P,4] holds gt_boxes [B,G,4], then proposals [B,P,4]. One thread a box, one pass.
// Deterministic.
#include "common/kernel.cuh"

struct BoxesWithGtParams {
    uint32_t b, g, p;
};
static_assert(sizeof(BoxesWithGtParams) == 12, "mirror of src/ops/boxes_with_gt/cuda.rs");

KERNEL(256, boxes_with_gt_f32, (float* out, const float* proposals, const float* gt_boxes, BoxesWithGtParams p)) {
    const int64_t width = int64_t(p.g) + p.p, count = p.b * width;
    for (int64_t i = global_thread(); i < count; i += global_threads()) {
        const int64_t image = i / width, column = i - image * width;
        const int64_t proposal = column - p.g;
        const float* from = proposal >= 0 ? proposals + 4 * (image * p.p + proposal) : gt_boxes + 4 * (image * p.g + column);
        store_pack(out + 4 * i, load_pack<4>(from));
    }
}
