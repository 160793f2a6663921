// Targets of all anchors: anchors [N,4], assigned, classes, box_labels [B,N], boxes [B,N,4], counts [B,2] (zeros before), gt_boxes [B,G,4],
// gt_labels [B,G]. One thread an anchor, blocks along y over images; a block adds its positives and negatives to the image's counts. Integer
// sums do not depend on the order: deterministic.
#include "common/boxes.cuh"

struct DenseTargetsParams {
    float stds[4];
    uint32_t b, n, g;
    int32_t background;
};
static_assert(sizeof(DenseTargetsParams) == 32, "mirror of src/ops/dense_targets/cuda.rs");

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
