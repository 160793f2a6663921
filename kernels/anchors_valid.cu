// Marks the anchors that may be used. boxes [N,4], sizes [B,4] (img_h, img_w, pad_h, pad_w); valid [B,N] u8. An anchor
// is valid if its cell is in the padded image and its box is within `border` of the image (a negative border: any box).
// One pass. Deterministic.
#include "common/boxes.cuh"

// Most levels of one launch. They follow each other and cover anchors `begin` to `end - 1`.
constexpr int LEVELS = 8;
struct AnchorsValidParams {
    uint32_t b, n, begin, end, levels, per_cell;
    float border;
    uint32_t from[LEVELS];  // first anchor of the level
    uint32_t w[LEVELS];     // cells in a row of the level
    float stride_px[LEVELS];
};
static_assert(sizeof(AnchorsValidParams) == 124, "mirror of src/ops/anchors_valid/cuda.rs");

// thread i   anchor begin + i, then i + grid threads; finds its level and cell once and loops over the images
//            neighbouring threads read neighbouring boxes and, for each image, write neighbouring bytes
//            the level's constants are selected in an unrolled loop: indices of p are known to the compiler
KERNEL(256, anchors_valid_u8, (uint8_t * valid, const float* boxes, const float* sizes, AnchorsValidParams p)) {
    for (int64_t i = p.begin + global_thread(); i < int64_t(p.end); i += global_threads()) {
        uint32_t from = p.from[0], w = p.w[0];
        float stride_px = p.stride_px[0];
#pragma unroll
        for (int l = 1; l < LEVELS; l++) {
            if (uint32_t(l) < p.levels && i >= int64_t(p.from[l])) {
                from = p.from[l];
                w = p.w[l];
                stride_px = p.stride_px[l];
            }
        }
        const uint32_t cell = (uint32_t(i) - from) / p.per_cell;
        const float x = float(cell % w), y = float(cell / w);
        const float4 box = load_box(boxes, i);
        for (uint32_t image = 0; image < p.b; image++) {
            const float4 size = load_box(sizes, image);
            bool ok = y < ceilf(size.z / stride_px) && x < ceilf(size.w / stride_px);
            if (!(p.border < 0.0f)) {
                ok = ok && box.x >= -p.border && box.y >= -p.border && box.z < size.y + p.border && box.w < size.x + p.border;
            }
            valid[int64_t(image) * p.n + i] = ok ? 1 : 0;
        }
    }
}
