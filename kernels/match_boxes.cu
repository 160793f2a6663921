// Matching of boxes to ground truth. boxes [N,4] or [B,N,4], gt [B,G,4], count [B], valid [B,N] u8 or i32 (at most one
// is not null); assigned [B,N] i32: ground truth + 1, 0 for background, IGNORED or INVALID; best [B,G]: the bits of
// each ground truth's largest IoU, 0 before the first kernel, or null.
//
// Ground truths go through shared memory in tiles, and a warp skips those that none of its boxes touches.
// First kernel: finds each box's best ground truth, and each ground truth's best IoU by integer maxima. IoUs are not
// negative, so their bits have the same order as the numbers.
// Second kernel, for low-quality matches: computes the IoUs once more and assigns the boxes whose IoU equals the best.
// The matrix of IoUs is never in memory. Deterministic: a maximum does not depend on the order.
#include "common/boxes.cuh"
#include "common/reduce.cuh"

struct MatchBoxesParams {
    uint32_t b, n, g;
    uint32_t box_rows;  // from one image's boxes to the next's: 0 if all images share them
    float pos_iou, neg_iou, min_pos_iou;
};
static_assert(sizeof(MatchBoxesParams) == 28, "mirror of src/ops/match_boxes/cuda.rs");

constexpr int32_t IGNORED = -1, INVALID = -2;
constexpr int BLOCK = 256;
constexpr uint32_t TILE = 256;

struct Min {
    __device__ __forceinline__ float operator()(float a, float b) const { return fminf(a, b); }
};

// The box of one thread. A box that takes no part, or whose area is NaN, is replaced by one that touches nothing: its
// IoUs are 0.
struct Candidate {
    float4 box;
    float area;
    bool is_box;
};

__device__ __forceinline__ Candidate load_candidate(const float* boxes, int64_t row, bool takes_part) {
    const Candidate none = {make_float4(INFINITY, INFINITY, -INFINITY, -INFINITY), 0.0f, false};
    if (!takes_part) return none;
    const float4 box = load_box(boxes, row);
    const float area = box_area(box);
    return area == area ? Candidate{box, area, true} : none;
}

// The smallest box that contains all boxes of the warp.
__device__ __forceinline__ float4 warp_bounds(float4 b) {
    return make_float4(warp_reduce(b.x, Min()), warp_reduce(b.y, Min()), warp_reduce(b.z, Max()), warp_reduce(b.w, Max()));
}

// True if `g` overlaps nothing within the bounds: then all IoUs are 0 (or NaN, if something is not finite).
__device__ __forceinline__ bool is_off(float4 g, float4 bounds) {
    return g.x >= bounds.z || g.y >= bounds.w || g.z <= bounds.x || g.w <= bounds.y;
}

__device__ __forceinline__ uint32_t truths_of(int32_t count, uint32_t g) { return count < 0 ? 0u : min(uint32_t(count), g); }

// block (x, y)   boxes x * 256 .. + 256 of images y, y + gridDim.y, ...
// thread t       box x * 256 + t, every ground truth in order   best IoU in a register; the first truth of equals wins
//                all lanes read the same truth: a broadcast     maxima in shared memory, then one global atomic a truth
KERNEL(BLOCK, match_boxes_f32,
       (int32_t * assigned, int32_t* best, const float* boxes, const uint8_t* valid_u8, const int32_t* valid_i32, const float* gt,
        const int32_t* count, MatchBoxesParams p)) {
    SHARED(float4, truth, TILE);
    SHARED(float, area, TILE);
    SHARED(int32_t, top, TILE);
    const int64_t i = global_thread();
    for (uint32_t image = blockIdx.y; image < p.b; image += gridDim.y) {
        const int64_t at = int64_t(image) * p.n + i;
        bool takes_part = i < int64_t(p.n);
        if (takes_part && valid_u8) takes_part = valid_u8[at] > 0;
        if (takes_part && valid_i32) takes_part = valid_i32[at] > 0;
        const Candidate own = load_candidate(boxes, int64_t(image) * p.box_rows + i, takes_part);
        const float4 bounds = warp_bounds(own.box);
        const uint32_t truths = truths_of(count[image], p.g);
        float most = 0.0f;
        uint32_t who = 0;
        for (uint32_t from = 0; from < truths; from += TILE) {
            const uint32_t len = min(TILE, truths - from);
            __syncthreads();  // all have read the previous tile
            for (uint32_t j = threadIdx.x; j < len; j += BLOCK) {
                truth[j] = load_box(gt, int64_t(image) * p.g + from + j);
                area[j] = box_area(truth[j]);
                top[j] = 0;
            }
            __syncthreads();
            for (uint32_t j = 0; j < len; j++) {
                const float4 g = truth[j];
                if (is_off(g, bounds)) continue;
                const float iou = box_iou(own.box, own.area, g, area[j]);
                if (iou > most) {
                    most = iou;
                    who = from + j;
                }
                // The check saves atomics. A stale value of top[j] only costs an atomic that changes nothing.
                if (best && iou > __int_as_float(*static_cast<volatile int32_t*>(top + j))) atomicMax(top + j, __float_as_int(iou));
            }
            if (best) {
                __syncthreads();
                for (uint32_t j = threadIdx.x; j < len; j += BLOCK) {
                    if (top[j] > 0) atomicMax(best + int64_t(image) * p.g + from + j, top[j]);
                }
            }
        }
        if (i < int64_t(p.n)) {
            int32_t a = IGNORED;
            if (!takes_part) a = INVALID;
            else if (truths == 0) a = 0;
            else if (most >= p.pos_iou) a = int32_t(who) + 1;
            else if (most < p.neg_iou) a = 0;
            assigned[at] = a;
        }
    }
}

// block and thread as in match_boxes_f32: one box per thread against every ground truth in order. The last truth whose
// best IoU the box reaches wins. Each thread writes only its own box: no atomics.
KERNEL(BLOCK, match_boxes_low_quality_f32,
       (int32_t * assigned, const int32_t* best, const float* boxes, const float* gt, const int32_t* count, MatchBoxesParams p)) {
    SHARED(float4, truth, TILE);
    SHARED(float, area, TILE);
    SHARED(float, top, TILE);
    const int64_t i = global_thread();
    for (uint32_t image = blockIdx.y; image < p.b; image += gridDim.y) {
        const int64_t at = int64_t(image) * p.n + i;
        const bool takes_part = i < int64_t(p.n) && assigned[at] != INVALID;
        const Candidate own = load_candidate(boxes, int64_t(image) * p.box_rows + i, takes_part);
        const float4 bounds = warp_bounds(own.box);
        const uint32_t truths = truths_of(count[image], p.g);
        int32_t last = 0;
        for (uint32_t from = 0; from < truths; from += TILE) {
            const uint32_t len = min(TILE, truths - from);
            __syncthreads();  // all have read the previous tile
            for (uint32_t j = threadIdx.x; j < len; j += BLOCK) {
                truth[j] = load_box(gt, int64_t(image) * p.g + from + j);
                area[j] = box_area(truth[j]);
                const float most = __int_as_float(best[int64_t(image) * p.g + from + j]);
                top[j] = most >= p.min_pos_iou ? most : -1.0f;  // no IoU is -1
            }
            __syncthreads();
            for (uint32_t j = 0; j < len; j++) {
                const float4 g = truth[j];
                const float most = top[j];
                // If the best IoU is 0, boxes that do not touch the truth reach it too: they must not be skipped.
                if (most < 0.0f || (most > 0.0f && is_off(g, bounds))) continue;
                if (box_iou(own.box, own.area, g, area[j]) == most) last = int32_t(from + j) + 1;
            }
        }
        if (own.is_box && last > 0) assigned[at] = last;
    }
}
