// Candidates of pairs: logits [B,R,K], pairs [B,P] i32, rows [B,R] i32 or null, anchors [N,4], deltas [B,N,4], sizes [B,4], scale [B,2] or null;
// boxes [B,P,4], scores, classes [B,P]. One thread a pair, one pass. Deterministic.
#include "common/boxes.cuh"

struct PairCandidatesParams {
    float stds[4];
    uint32_t b, r, k, n, p;
    float threshold, min_size_px;
};
static_assert(sizeof(PairCandidatesParams) == 44, "mirror of src/ops/pair_candidates/cuda.rs");

// By e^-|x|, which neither overflows nor loses the small side.
__device__ __forceinline__ float sigmoid(float x) {
    const float e = expf(-fabsf(x));
    return x < 0.0f ? e / (1.0f + e) : 1.0f / (1.0f + e);
}

KERNEL(256, pair_candidates_f32,
       (float* boxes, float* scores, int32_t* classes, const float* logits, const int32_t* pairs, const int32_t* rows,
        const float* anchors, const float* deltas, const float* sizes, const float* scale, PairCandidatesParams p)) {
    const float4 stds = make_float4(p.stds[0], p.stds[1], p.stds[2], p.stds[3]);
    const int64_t count = int64_t(p.b) * p.p, logits_of_image = int64_t(p.r) * p.k;
    for (int64_t i = global_thread(); i < count; i += global_threads()) {
        const int64_t image = i / p.p;
        const int32_t pair = pairs[i];
        float4 box = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        float score = 0.0f;
        int32_t label = -1;
        if (pair >= 0 && int64_t(pair) < logits_of_image) {
            const uint32_t row = uint32_t(pair) / p.k;
            const int64_t anchor = rows ? rows[image * p.r + row] : int64_t(row);
            const float prob = sigmoid(logits[image * logits_of_image + pair]);
            if (anchor >= 0 && anchor < int64_t(p.n) && prob > p.threshold) {
                const float4 d = decode(load_box(anchors, anchor), load_box(deltas, image * p.n + anchor), stds, image_size(sizes, image));
                const float sx = scale ? 1.0f / scale[2 * image] : 1.0f, sy = scale ? 1.0f / scale[2 * image + 1] : 1.0f;
                const float4 own = make_float4(d.x * sx, d.y * sy, d.z * sx, d.w * sy);
                if (p.min_size_px < 0.0f || (own.z - own.x > p.min_size_px && own.w - own.y > p.min_size_px)) {
                    box = own;
                    score = prob;
                    label = int32_t(uint32_t(pair) - row * p.k);
                }
            }
        }
        store_box(boxes, i, box);
        scores[i] = score;
        classes[i] = label;
    }
}
