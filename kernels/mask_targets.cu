// Targets of the mask head. target [B,P,size,size] i32; rois [B,P,4] f32; gt [B,P], runs [B,S], offsets [B,G+1] i32;
// sizes [B,4] f32. An object's mask is a list of toggles, ascending positions: a pixel is set if an odd number of
// toggles is at most its position. Samples are added in mmcv's order, so that the sum is mmcv's to the bit.
// A row of samples begins with one binary search in each of its two rows of pixels; from there the search is linear.
// Reads the toggles of the box's rows from cache, writes target once. Deterministic.
#include "common/boxes.cuh"

struct MaskTargetsParams {
    uint32_t per_image;  // P
    uint32_t runs;       // S
    uint32_t ends;       // G + 1
    uint32_t width, size;
};
static_assert(sizeof(MaskTargetsParams) == 20, "mirror of src/ops/mask_targets/cuda.rs");

// One axis of a box, in pixels: `bin` is the length of a bin, `grid` its number of samples.
struct CropAxis {
    float start, bin;
    int grid, pixels;
};

// Clips lo .. hi to 0 .. limit and divides it into bins. NaN gives 0 samples.
__device__ __forceinline__ CropAxis crop_axis(float lo, float hi, float limit, uint32_t bins) {
    CropAxis a;
    a.start = clamp(lo, 0.0f, limit) - 0.5f;
    a.bin = ((clamp(hi, 0.0f, limit) - 0.5f) - a.start) / float(bins);
    a.pixels = limit > 0.0f ? int(limit) : 0;
    a.grid = a.pixels > 0 && a.bin > 0.0f ? int(ceilf(a.bin)) : 0;
    return a;
}

// The two pixels between which a sample lies, and the weight of the second. All samples of a clipped box are inside.
struct CropSample {
    int low, high;
    float share;
};

__device__ __forceinline__ CropSample crop_sample(const CropAxis& a, uint32_t b, int i) {
    float v = a.start + float(b) * a.bin + (float(i) + 0.5f) * a.bin / float(a.grid);
    v = v <= 0.0f ? 0.0f : v;
    const int low = int(v);
    if (low + 1 >= a.pixels) return {a.pixels - 1, a.pixels - 1, 0.0f};
    return {low, low + 1, v - float(low)};
}

// Returns how many of the `n` toggles are at most p, by binary search.
__device__ __forceinline__ int toggles_to(const int32_t* toggles, int n, int64_t p) {
    int low = 0, high = n;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (toggles[middle] <= p) low = middle + 1;
        else high = middle;
    }
    return low;
}

// Like toggles_to, but searches linearly: the first `known` toggles are known to be at most p.
__device__ __forceinline__ int toggles_from(const int32_t* toggles, int n, int known, int64_t p) {
    while (known < n && toggles[known] <= p) known++;
    return known;
}

__device__ __forceinline__ float if_set(int toggles, float weight) { return toggles % 2 != 0 ? weight : 0.0f; }

// block (x, y)   box x of the B*P boxes, rows of bins 4 y .. 4 y + 3
// warp w         owns row of bins 4 y + w; lane l owns bins l, l + 32, ... and writes neighbouring elements of target
//                a lane adds up all samples of its bin: no shuffles, and the order of sums is mmcv's
KERNEL(128, mask_targets_i32, (int32_t* target, const float* rois, const int32_t* gt, const int32_t* runs, const int32_t* offsets,
                               const float* sizes, MaskTargetsParams p)) {
    const uint32_t r = blockIdx.x, i = blockIdx.y * 4 + warp_id(), image = r / p.per_image;
    if (i >= p.size) return;
    int32_t* const out = target + (int64_t(r) * p.size + i) * p.size;
    const int32_t g = gt[r];
    if (g < 0 || uint32_t(g) + 1 >= p.ends) {
        for (uint32_t j = lane_id(); j < p.size; j += WARP) out[j] = -1;
        return;
    }
    const int32_t* const ends = offsets + int64_t(image) * p.ends + g;
    const int last = min(max(ends[1], 0), int(p.runs)), first = min(max(ends[0], 0), last), n = last - first;
    const int32_t* const toggles = runs + int64_t(image) * p.runs + first;
    const float4 roi = load_box(rois, r), limits = load_box(sizes, image);
    const CropAxis rows = crop_axis(roi.y, roi.w, limits.z, p.size), cols = crop_axis(roi.x, roi.z, limits.w, p.size);
    for (uint32_t j = lane_id(); j < p.size; j += WARP) {
        float sum = 0.0f;
#pragma unroll 1
        for (int iy = 0; iy < rows.grid && cols.grid > 0; iy++) {
            const CropSample y = crop_sample(rows, i, iy);
            const float hy = 1.0f - y.share;
            const int64_t top = int64_t(y.low) * p.width, bottom = int64_t(y.high) * p.width;
            const int x_first = crop_sample(cols, j, 0).low;
            int at_top = toggles_to(toggles, n, top + x_first), at_bottom = toggles_to(toggles, n, bottom + x_first);
#pragma unroll 1
            for (int ix = 0; ix < cols.grid; ix++) {
                const CropSample x = crop_sample(cols, j, ix);
                const float hx = 1.0f - x.share;
                at_top = toggles_from(toggles, n, at_top, top + x.low);
                at_bottom = toggles_from(toggles, n, at_bottom, bottom + x.low);
                sum += if_set(at_top, hy * hx) + if_set(toggles_from(toggles, n, at_top, top + x.high), hy * x.share) +
                       if_set(at_bottom, y.share * hx) +
                       if_set(toggles_from(toggles, n, at_bottom, bottom + x.high), y.share * x.share);
            }
        }
        out[j] = sum / float(max(rows.grid * cols.grid, 1)) >= 0.5f;
    }
}
