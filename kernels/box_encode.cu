// Regression targets and labels of samples. rois [B,S,4], gt_boxes [B,G,4], gt, idx [B,S], gt_labels [B,G]; y [B,S,4] or [B,S].
// One thread a sample, one pass. Deterministic.
// Of all anchors: anchors [N,4], assigned, classes, box_labels [B,N], boxes [B,N,4], counts [B,2] (zeros before). One thread an
// anchor, blocks along y over images; a block adds its positives and negatives to the image's counts. Integer sums do not depend
// on the order: deterministic.
#include "common/boxes.cuh"

struct BoxEncodeParams {
    float stds[4];
    uint32_t b, s, g;
};
static_assert(sizeof(BoxEncodeParams) == 28, "mirror of src/ops/box_encode/cuda.rs");

KERNEL(256, box_encode_f32, (float* y, const float* rois, const float* gt_boxes, const int32_t* gt, BoxEncodeParams p)) {
    const int64_t count = int64_t(p.b) * p.s;
    for (int64_t r = global_thread(); r < count; r += global_threads()) {
        const int64_t i = gt[r];
        float4 out = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (i >= 0 && i < int64_t(p.g)) {
            out = encode(load_box(rois, r), load_box(gt_boxes, r / p.s * p.g + i), p.stds);
        }
        store_box(y, r, out);
    }
}
