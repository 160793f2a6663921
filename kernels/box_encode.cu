// Regression targets and labels of samples. rois [B,S,4], gt_boxes [B,G,4], gt, idx [B,S], gt_labels [B,G]; y [B,S,4] or [B,S].
// One thread a sample, one pass. Deterministic.
#include "common/boxes.cuh"

struct BoxEncodeParams {
    float stds[4];
    uint32_t b, s, g;
};
static_assert(sizeof(BoxEncodeParams) == 28, "mirror of src/ops/box_encode/cuda.rs");

// Shift and log scale from p0, p1 to g0, g1.
__device__ __forceinline__ float2 encode_axis(float p0, float p1, float g0, float g1) {
    const float p_side = p1 - p0, g_side = g1 - g0;
    return make_float2(((g0 + g1) * 0.5f - (p0 + p1) * 0.5f) / p_side, logf(g_side / p_side));
}

KERNEL(256, box_encode_f32, (float* y, const float* rois, const float* gt_boxes, const int32_t* gt, BoxEncodeParams p)) {
    const int64_t count = int64_t(p.b) * p.s;
    for (int64_t r = global_thread(); r < count; r += global_threads()) {
        const int64_t i = gt[r];
        float4 out = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (i >= 0 && i < int64_t(p.g)) {
            const float4 box = load_box(rois, r), truth = load_box(gt_boxes, r / p.s * p.g + i);
            const float2 along_x = encode_axis(box.x, box.z, truth.x, truth.z), along_y = encode_axis(box.y, box.w, truth.y, truth.w);
            out = make_float4(along_x.x / p.stds[0], along_y.x / p.stds[1], along_x.y / p.stds[2], along_y.y / p.stds[3]);
        }
        store_box(y, r, out);
    }
}

struct LabelsParams {
    uint32_t b, s, g;
    int32_t background;
};
static_assert(sizeof(LabelsParams) == 16, "mirror of src/ops/box_encode/cuda.rs");

KERNEL(256, labels_i32, (int32_t * y, const int32_t* gt, const int32_t* idx, const int32_t* gt_labels, LabelsParams p)) {
    const int64_t count = int64_t(p.b) * p.s;
    for (int64_t r = global_thread(); r < count; r += global_threads()) {
        const int64_t i = gt[r];
        int32_t label = p.background;
        if (i >= 0 && i < int64_t(p.g)) label = gt_labels[r / p.s * p.g + i];
        y[r] = idx[r] < 0 ? -1 : label;
    }
}
