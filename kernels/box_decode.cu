// Decodes boxes from deltas. anchors [N,4] or [B,N,4], deltas [B,N,4], sizes [B,4], y [B,K,4] f32; idx [B,K] i32, or
// null if box k belongs to anchor k. An index outside 0 .. N - 1 gives zeros. One pass. Deterministic.
#include "common/boxes.cuh"

struct BoxDecodeParams {
    float stds[4];
    uint32_t b, n, k;
    uint32_t anchor_rows;  // from one image's anchors to the next's: 0 if all images share them
};
static_assert(sizeof(BoxDecodeParams) == 32, "mirror of src/ops/box_decode/cuda.rs");

// thread i   box i of B*K, then i + grid threads; image = i / K
//            anchor, delta and box are 16-byte accesses; neighbouring threads write neighbouring boxes
//            one thread owns each box: nothing is shared
KERNEL(256, box_decode_f32,
       (float* y, const float* anchors, const float* deltas, const int32_t* idx, const float* sizes, BoxDecodeParams p)) {
    const float4 stds = make_float4(p.stds[0], p.stds[1], p.stds[2], p.stds[3]);
    const int64_t count = int64_t(p.b) * p.k;
    for (int64_t r = global_thread(); r < count; r += global_threads()) {
        const int64_t image = r / p.k;
        const int64_t i = idx ? idx[r] : r - image * p.k;
        float4 box = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (i >= 0 && i < int64_t(p.n)) {
            const float4 anchor = load_box(anchors, image * p.anchor_rows + i), delta = load_box(deltas, image * p.n + i);
            box = decode(anchor, delta, stds, image_size(sizes, image));
        }
        store_box(y, r, box);
    }
}
