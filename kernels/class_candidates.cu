// Candidates of the final non-maximum suppression. probs [B,R,K+1], deltas [B,R,4 groups], rois [B,R,4], valid [B,R]
// i32, sizes [B,4], scale [B,2] or null; boxes [B,N,4], scores, classes [B,N]; passing [B,R] i32.
// First kernel: counts the classes of each RoI that pass the threshold. Second kernel: writes the candidates, decoded,
// in order of RoI, then class. The first N of an image are kept; free slots get padding. Reads probs twice.
// Deterministic.
#include "common/boxes.cuh"
#include "common/reduce.cuh"

struct ClassCandidatesParams {
    float stds[4];
    uint32_t b, r, k, groups, n;
    float threshold;
};
static_assert(sizeof(ClassCandidatesParams) == 40, "mirror of src/ops/class_candidates/cuda.rs");

constexpr int BLOCK = 256;
constexpr uint32_t ROIS = BLOCK / WARP;

// block (x, y)   RoIs 8 x .. 8 x + 7 of image y, then of image y + gridDim.y, ...
// warp w         owns RoI 8 x + w; lane l reads the probabilities of classes l, l + 32, ...: neighbouring addresses
//                shuffles add the lanes' counts; lane 0 writes the RoI's count
KERNEL(BLOCK, class_candidates_count_f32, (int32_t * passing, const float* probs, const int32_t* valid, ClassCandidatesParams p)) {
    const uint32_t roi = blockIdx.x * ROIS + warp_id();
    for (uint32_t image = blockIdx.y; image < p.b && roi < p.r; image += gridDim.y) {  // uniform in a warp
        const int64_t row = int64_t(image) * p.r + roi;
        const float* own = probs + row * (p.k + 1);
        int32_t count = 0;
        if (valid[row] >= 0) {
            for (uint32_t c = lane_id(); c < p.k; c += WARP) count += own[c] > p.threshold ? 1 : 0;
        }
        count = warp_reduce(count, Sum());
        if (lane_id() == 0) passing[row] = count;
    }
}

// block (x, y)   RoIs 8 x .. 8 x + 7 of image y, as above; all its threads add up the counts of the RoIs before them
// warp w         owns RoI 8 x + w; in turn t lane l tests class 32 t + l, and the ballot's lower bits give its slot
//                slots follow from counts alone: no atomics, a fixed order; an image's blocks share the padding
KERNEL(BLOCK, class_candidates_f32,
       (float* boxes, float* scores, int32_t* classes, const int32_t* passing, const float* probs, const float* deltas,
        const float* rois, const int32_t* valid, const float* sizes, const float* scale, ClassCandidatesParams p)) {
    SHARED(int64_t, scratch, WARP);
    const float4 stds = make_float4(p.stds[0], p.stds[1], p.stds[2], p.stds[3]);
    const uint32_t roi = blockIdx.x * ROIS + warp_id();
    for (uint32_t image = blockIdx.y; image < p.b; image += gridDim.y) {
        const int32_t* of_image = passing + int64_t(image) * p.r;
        int64_t all = 0, before = 0;
        for (uint32_t j = threadIdx.x; j < p.r; j += BLOCK) {
            all += of_image[j];
            if (j < blockIdx.x * ROIS) before += of_image[j];
        }
        all = block_reduce(all, Sum(), int64_t(0), scratch);
        before = block_reduce(before, Sum(), int64_t(0), scratch);
        for (uint32_t j = blockIdx.x * ROIS; j < min(roi, p.r); j++) before += of_image[j];

        const int64_t row = int64_t(image) * p.r + roi, out = int64_t(image) * p.n;
        if (roi < p.r && valid[row] >= 0) {
            const float2 size = image_size(sizes, image);
            const float sx = scale ? 1.0f / scale[2 * image] : 1.0f, sy = scale ? 1.0f / scale[2 * image + 1] : 1.0f;
            const float* own = probs + row * (p.k + 1);
            for (uint32_t from = 0; from < p.k; from += WARP) {
                const uint32_t c = from + lane_id();
                const float prob = c < p.k ? own[c] : 0.0f;
                const bool passes = c < p.k && prob > p.threshold;
                const uint32_t mask = __ballot_sync(FULL_WARP, passes);
                const int64_t slot = before + __popc(mask & ((1u << lane_id()) - 1));
                before += __popc(mask);
                if (!passes || slot >= int64_t(p.n)) continue;
                const float4 delta = load_box(deltas, row * p.groups + (p.groups == 1 ? 0 : c));
                const float4 box = decode(load_box(rois, row), delta, stds, size);
                store_box(boxes, out + slot, make_float4(box.x * sx, box.y * sy, box.z * sx, box.w * sy));
                scores[out + slot] = prob;
                classes[out + slot] = int32_t(c);
            }
        }
        for (int64_t slot = all + global_thread(); slot < int64_t(p.n); slot += global_threads()) {
            store_box(boxes, out + slot, make_float4(0.0f, 0.0f, 0.0f, 0.0f));
            scores[out + slot] = 0.0f;
            classes[out + slot] = -1;
        }
    }
}
