// Boxes from deltas, and the groups of boxes. anchors [N,4] or [B,N,4], deltas [B,N,4], idx [B,K] or null, sizes [B,4], y [B,K,4];
// groups: boxes [B,K,4], idx, y [B,K]. One thread a box, 16 bytes a load; one pass. Deterministic.
#include "common/boxes.cuh"

struct BoxDecodeParams {
    float stds[4];
    uint32_t b, n, k;
    uint32_t anchor_rows;  // from one image's anchors to the next's: 0 if all images share them
};
static_assert(sizeof(BoxDecodeParams) == 32, "mirror of src/ops/box_decode/cuda.rs");

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

// Runs of positions of one launch: run j begins at position from[j] and ends where the next begins, the last at `end`.
constexpr int RUNS = 16;
struct ValidGroupsParams {
    uint32_t b, k, end, runs;
    uint32_t from[RUNS];
    int32_t group[RUNS];
};
static_assert(sizeof(ValidGroupsParams) == 144, "mirror of src/ops/box_decode/cuda.rs");

KERNEL(256, valid_groups_i32, (int32_t * y, const float* boxes, const int32_t* idx, ValidGroupsParams p)) {
    const uint32_t begin = p.from[0], len = p.end - begin;
    const int64_t count = int64_t(p.b) * len;
    for (int64_t i = global_thread(); i < count; i += global_threads()) {
        const int64_t image = i / len;
        const uint32_t position = begin + uint32_t(i - image * len);
        int32_t group = p.group[0];
#pragma unroll
        for (int j = 1; j < RUNS; j++) {
            if (uint32_t(j) < p.runs && position >= p.from[j]) group = p.group[j];
        }
        const int64_t r = image * p.k + position;
        const float4 box = load_box(boxes, r);
        const bool is_box = idx[r] >= 0 && box.z - box.x > 0.0f && box.w - box.y > 0.0f;
        y[r] = is_box ? group : -1;
    }
}

// y [n]: 1 where idx [n] is `first` or more, else -1.
KERNEL(256, proposals_from_i32, (int32_t * y, const int32_t* idx, int32_t first, int64_t n)) {
    for (int64_t i = global_thread(); i < n; i += global_threads()) y[i] = idx[i] >= first ? 1 : -1;
}
