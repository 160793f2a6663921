// Groups of boxes: boxes [B,K,4], idx, y [B,K]. One thread a box, one pass. Deterministic.
#include "common/boxes.cuh"

// Runs of positions of one launch: run j begins at position from[j] and ends where the next begins, the last at `end`.
constexpr int RUNS = 16;
struct ValidGroupsParams {
    uint32_t b, k, end, runs;
    uint32_t from[RUNS];
    int32_t group[RUNS];
};
static_assert(sizeof(ValidGroupsParams) == 144, "mirror of src/ops/valid_groups/cuda.rs");

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
