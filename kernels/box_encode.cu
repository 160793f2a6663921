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

// Shift and log scale from p0, p1 to g0, g1.
__device__ __forceinline__ float2 encode_axis(float p0, float p1, float g0, float g1) {
    const float p_side = p1 - p0, g_side = g1 - g0;
    return make_float2(((g0 + g1) * 0.5f - (p0 + p1) * 0.5f) / p_side, logf(g_side / p_side));
}

__device__ __forceinline__ float4 encode(float4 box, float4 truth, const float* stds) {
    const float2 along_x = encode_axis(box.x, box.z, truth.x, truth.z), along_y = encode_axis(box.y, box.w, truth.y, truth.w);
    return make_float4(along_x.x / stds[0], along_y.x / stds[1], along_x.y / stds[2], along_y.y / stds[3]);
}

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

struct DenseTargetsParams {
    float stds[4];
    uint32_t b, n, g;
    int32_t background;
};
static_assert(sizeof(DenseTargetsParams) == 32, "mirror of src/ops/box_encode/cuda.rs");

KERNEL(256, dense_targets_f32,
       (float* boxes, int32_t* classes, int32_t* box_labels, int32_t* counts, const float* anchors, const int32_t* assigned,
        const float* gt_boxes, const int32_t* gt_labels, DenseTargetsParams p)) {
    const int64_t i = global_thread();
    for (uint32_t image = blockIdx.y; image < p.b; image += gridDim.y) {
        const int64_t at = int64_t(image) * p.n + i;
        const int32_t a = i < int64_t(p.n) ? assigned[at] : -1;
        const bool positive = a > 0 && uint32_t(a) <= p.g;
        if (i < int64_t(p.n)) {
            float4 out = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            int32_t label = a == 0 ? p.background : -1;
            if (positive) {
                const int64_t truth = int64_t(image) * p.g + a - 1;
                out = encode(load_box(anchors, i), load_box(gt_boxes, truth), p.stds);
                label = gt_labels[truth];
            }
            store_box(boxes, at, out);
            classes[at] = label;
            box_labels[at] = positive ? 0 : -1;
        }
        const int positives = __syncthreads_count(positive), negatives = __syncthreads_count(a == 0);
        if (threadIdx.x == 0) {
            if (positives > 0) atomicAdd(counts + 2 * int64_t(image), positives);
            if (negatives > 0) atomicAdd(counts + 2 * int64_t(image) + 1, negatives);
        }
    }
}
