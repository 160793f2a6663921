// Regression targets of samples. rois [B,S,4], gt_boxes [B,G,4] f32, gt [B,S] i32; y [B,S,4] f32. A sample whose gt is
// outside 0 .. G - 1 gets zeros. One pass. Deterministic.
#include "common/boxes.cuh"

struct BoxEncodeParams {
    float stds[4];
    uint32_t b, s, g;
};
static_assert(sizeof(BoxEncodeParams) == 28, "mirror of src/ops/box_encode/cuda.rs");

// thread i   sample i of B*S, then i + grid threads; image = i / S
//            reads and writes its boxes as 16-byte vectors: neighbouring threads use neighbouring rois and rows of y
//            one thread owns each output row: nothing is shared
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
