// Non-maximum suppression within groups. boxes [B,N,4], scores [B,N] f32; group [B,N] or [N] i32; keep [B,max_out] i32. The same
// decisions as src/ops/nms/cpu.rs, of any order of threads and blocks.
//
// A box's key holds (group, rank of its score, index), so that ascending keys put groups together, best first; with offset, where
// shifted groups may touch, all boxes are of one group. In order of the launches:
//   nms_extent   one block 2048 boxes: largest and smallest coordinate and so on; with offset only
//   nms_sort     one block 2048 boxes: keys, sorted in shared memory
//   nms_place    eight threads a box: its place in the image by binary search in the other blocks' keys; groups' first places
//   nms_mask     one warp 64 x 64 boxes: which are above the threshold; only within groups, and only boxes before a box
//   nms_resolve  one block a group and image, over blocks of 64 boxes in order: a box goes if one of its mask is kept. The 64
//                decide together in a warp: kept is who has no kept or open box before it, until none is open. Kept keys and
//                boxes move to the front of their group
//   nms_cross    one thread a box: against the boxes kept of `words` blocks of 64, for groups that are longer than these; the
//                mask holds only so many words a box, and such groups are resolved in several rounds
//   nms_output   eight threads a kept box: its place in the result by binary search in the other groups' kept keys
// Passes: each pair of a group once; the boxes a few times. Deterministic.
#include "common/order.cuh"
#include "common/reduce.cuh"

constexpr uint32_t CHUNK = 2048;
constexpr int SORT_THREADS = 1024;
constexpr int EXTENT_THREADS = 256;
constexpr uint32_t NONE = 0xffffffffu;

// `chunks`: of CHUNK boxes; `blocks`: of 64 boxes; `words`: of a mask's row; `index_bits`: of a key;
// `group_stride`: N, or 0 for one row for all images.
struct NmsParams {
    uint32_t n, groups, max_out, chunks, blocks, words, round, index_bits, group_stride, offset;
    float iou_threshold;
};
static_assert(sizeof(NmsParams) == 44, "mirror of src/ops/nms/cuda.rs");

// Of the boxes that take part.
struct Extent {
    float max, min;
    int32_t infinite, last_group, count;
};
static_assert(sizeof(Extent) == 20, "mirror of src/ops/nms/cuda.rs");

// What an image's boxes are moved by (g * shift), and whether groups are apart.
struct Meta {
    float shift;
    uint32_t separate;
};

__device__ __forceinline__ uint32_t key_shift(const NmsParams& p) { return 32 + p.index_bits; }
__device__ __forceinline__ uint32_t group_in(uint64_t key, const NmsParams& p) { return uint32_t(key >> key_shift(p)); }
__device__ __forceinline__ uint32_t index_in(uint64_t key, const NmsParams& p) {
    return uint32_t(key & ((uint64_t(1) << p.index_bits) - 1));
}
// A group of 0..groups; as unsigned numbers, negative ones are above.
__device__ __forceinline__ bool takes_part(int32_t group, const NmsParams& p) { return uint32_t(group) < p.groups; }

__device__ __forceinline__ float area(const float4& b) { return (b.z - b.x) * (b.w - b.y); }

// Whether a suppresses b: IoU above the threshold, in the CPU's arithmetic; 0 / 0 is NaN and suppresses nothing.
__device__ __forceinline__ bool suppresses(const float4& a, const float4& b, float threshold) {
    const float w = fminf(a.z, b.z) - fmaxf(a.x, b.x), h = fminf(a.w, b.w) - fmaxf(a.y, b.y);
    const float inter = fmaxf(w, 0.0f) * fmaxf(h, 0.0f), uni = area(a) + area(b) - inter;
    // A product instead of a quotient never misses: IoU > t rounded implies inter >= t * union rounded.
    return inter >= threshold * uni && inter / uni > threshold;
}

// Negative only where a does not suppress b, which is nearly everywhere: inter (1 + t) - t (area + area), with margins for
// rounding in `bound`. Few instructions, no branch.
__device__ __forceinline__ float bound(const float4& b, float threshold) {
    return threshold * area(b) * (1.0f - 1.0f / 262144.0f) - 1e-37f;
}
__device__ __forceinline__ float excess(const float4& a, float a_bound, const float4& b, float b_bound, float one_and_threshold) {
    const float w = fminf(a.z, b.z) - fmaxf(a.x, b.x), h = fminf(a.w, b.w) - fmaxf(a.y, b.y);
    return fmaf(fmaxf(w, 0.0f) * h, one_and_threshold, -(a_bound + b_bound));
}

// Sum over the eight lanes that work together.
__device__ __forceinline__ uint32_t eight_sum(uint32_t v) {
    for (int d = 4; d > 0; d /= 2) v += __shfl_xor_sync(FULL_WARP, v, d);
    return v;
}

KERNEL(EXTENT_THREADS, nms_extent_f32, (Extent * extents, const float* boxes, const int32_t* group, NmsParams p)) {
    SHARED(float, floats, 32);
    SHARED(int32_t, ints, 32);
    const int64_t image = blockIdx.y;
    const float4* box = reinterpret_cast<const float4*>(boxes) + image * p.n;
    group += image * p.group_stride;
    Extent e = {-INFINITY, INFINITY, 0, 0, 0};
#pragma unroll
    for (uint32_t j = 0; j < CHUNK / EXTENT_THREADS; j++) {
        const uint32_t i = blockIdx.x * CHUNK + j * EXTENT_THREADS + threadIdx.x;
        if (i >= p.n || !takes_part(group[i], p)) continue;
        const float4 b = box[i];
        e.max = fmaxf(fmaxf(fmaxf(e.max, b.x), fmaxf(b.y, b.z)), b.w);
        e.min = fminf(fminf(fminf(e.min, b.x), fminf(b.y, b.z)), b.w);
        const bool finite = fabsf(b.x) < INFINITY && fabsf(b.y) < INFINITY && fabsf(b.z) < INFINITY && fabsf(b.w) < INFINITY;
        e.infinite |= !finite;
        e.last_group = max(e.last_group, group[i]);
        e.count++;
    }
    e.max = block_reduce(e.max, Max(), -INFINITY, floats);
    e.min = -block_reduce(-e.min, Max(), -INFINITY, floats);
    e.infinite = block_reduce(e.infinite, Max(), 0, ints);
    e.last_group = block_reduce(e.last_group, Max(), 0, ints);
    e.count = block_reduce(e.count, Sum(), 0, ints);
    if (threadIdx.x == 0) extents[image * p.chunks + blockIdx.x] = e;
}

// From this many boxes on mmcv runs group by group.
constexpr int32_t SPLIT_FROM = 10000;

// Called by the whole block.
__device__ __forceinline__ Meta image_meta(const Extent* extents, const NmsParams& p, float* floats, int32_t* ints) {
    if (!p.offset) return {0.0f, 1};
    Extent e = {-INFINITY, INFINITY, 0, 0, 0};
    for (uint32_t i = threadIdx.x; i < p.chunks; i += blockDim.x) {
        const Extent o = extents[i];
        e = {fmaxf(e.max, o.max), fminf(e.min, o.min), max(e.infinite, o.infinite), max(e.last_group, o.last_group), e.count + o.count};
    }
    const float shift = block_reduce(e.max, Max(), -INFINITY, floats) + 1.0f;
    const float least = -block_reduce(-e.min, Max(), -INFINITY, floats);
    const bool finite = block_reduce(e.infinite, Max(), 0, ints) == 0;
    const int32_t last = block_reduce(e.last_group, Max(), 0, ints);
    const int32_t count = block_reduce(e.count, Sum(), 0, ints);
    // Shifted groups lie apart if coordinates are not negative and the rounding of the shift stays below the gap of 1.
    const bool apart = finite && least >= 0.0f && float(last) * shift < 8388608.0f;
    return {shift, apart || last == 0 || count >= SPLIT_FROM};
}

KERNEL(SORT_THREADS, nms_sort_f32,
       (uint64_t * chunk_keys, Meta* meta, const Extent* extents, const float* scores, const int32_t* group, NmsParams p)) {
    SHARED(uint64_t, keys, CHUNK);
    SHARED(float, floats, 32);
    SHARED(int32_t, ints, 32);
    const int64_t image = blockIdx.y;
    const Meta m = image_meta(extents + image * p.chunks, p, floats, ints);
    if (blockIdx.x == 0 && threadIdx.x == 0) meta[image] = m;
    const uint32_t from = blockIdx.x * CHUNK, n = min(CHUNK, p.n - from);
    scores += image * p.n;
    group += image * p.group_stride;
    for (uint32_t i = threadIdx.x; i < n; i += SORT_THREADS) {
        const int32_t g = group[from + i];
        const uint64_t place = uint64_t(descending_rank(scores[from + i])) << p.index_bits | (from + i);
        keys[i] = takes_part(g, p) ? (m.separate ? uint64_t(g) << key_shift(p) : 0) | place : ~uint64_t(0);
    }
    __syncthreads();
    block_sort([&](uint32_t i) -> uint64_t& { return keys[i]; }, n);
    for (uint32_t i = threadIdx.x; i < n; i += SORT_THREADS) chunk_keys[image * p.n + from + i] = keys[i];
}

KERNEL(256, nms_place_f32,
       (uint64_t * keys, float* placed, uint32_t* starts, uint8_t* removed, const uint64_t* chunk_keys, const Meta* meta,
        const float* boxes, const int32_t* group, NmsParams p)) {
    const int64_t image = blockIdx.y;
    const uint32_t unit = uint32_t(global_thread() / 8), lane = threadIdx.x % 8;
    const uint32_t own = unit < p.n ? unit / CHUNK : NONE, g = unit - p.n;
    chunk_keys += image * p.n;
    uint64_t key = ~uint64_t(0);
    if (unit < p.n) key = chunk_keys[unit];
    else if (g <= p.groups) key = uint64_t(g) << key_shift(p);
    const bool searches = key != ~uint64_t(0);
    uint32_t before = 0;
    for (uint32_t c = lane; searches && c < p.chunks; c += 8)
        if (c != own) before += lower_bound(chunk_keys + c * CHUNK, min(CHUNK, p.n - c * CHUNK), key);
    before = eight_sum(before);
    if (lane != 0 || !searches) return;
    if (own == NONE) {
        starts[image * (p.groups + 1) + g] = before;
        return;
    }
    const int64_t at = image * p.n + before + unit % CHUNK;
    const uint32_t index = index_in(key, p);
    float4 b = reinterpret_cast<const float4*>(boxes)[image * p.n + index];
    if (p.offset) {
        const float by = float(group[image * p.group_stride + index]) * meta[image].shift;
        b = make_float4(b.x + by, b.y + by, b.z + by, b.w + by);
    }
    keys[at] = key;
    reinterpret_cast<float4*>(placed)[at] = b;
    removed[at] = 0;
}

constexpr uint32_t MASK_WARPS = 8;

// Bits lo..hi of 64, for numbers that may lie outside.
__device__ __forceinline__ uint64_t bit_range(int32_t lo, int32_t hi) {
    lo = max(lo, 0);
    hi = min(hi, 64);
    if (lo >= hi) return 0;
    return (~uint64_t(0) >> (64 - (hi - lo))) << lo;
}

// masks [B,blocks,words,64]: word c of row r in block k has bit j if box 64 (k - c) + j is of r's group, before it and above the
// threshold with it. Rows reach back to the first block of their round.
KERNEL(MASK_WARPS * 32, nms_mask_f32,
       (uint64_t * masks, const uint64_t* keys, const float* placed, const uint32_t* starts, NmsParams p)) {
    SHARED(float4, columns, MASK_WARPS * 64);
    SHARED(float, bounds, MASK_WARPS * 64);
    const int64_t image = blockIdx.z;
    const uint32_t block = blockIdx.x, back = blockIdx.y * MASK_WARPS + uint32_t(warp_id()), lane = uint32_t(lane_id());
    keys += image * p.n;
    starts += image * (p.groups + 1);
    const float4* box = reinterpret_cast<const float4*>(placed) + image * p.n;
    const uint32_t total = starts[p.groups];
    if (block * 64 >= total) return;  // here and below: whole warps
    const uint32_t first = starts[group_in(keys[block * 64], p)] / 64;
    if (back > (block - first) % p.words) return;
    const uint32_t from = (block - back) * 64;

    const float4 nothing = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float4* column = columns + warp_id() * 64;
    float* column_bound = bounds + warp_id() * 64;
    for (uint32_t i = lane; i < 64; i += 32) {
        const float4 b = from + i < total ? box[from + i] : nothing;
        column[i] = b;
        column_bound[i] = bound(b, p.iou_threshold);
    }
    __syncwarp();
    float4 b[2];
    float b_bound[2];
    uint64_t range[2];
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        const uint32_t row = block * 64 + r * 32 + lane;
        b[r] = row < total ? box[row] : nothing;
        b_bound[r] = bound(b[r], p.iou_threshold);
        const uint32_t begin = row < total ? starts[group_in(keys[row], p)] : NONE;
        range[r] = row < total ? bit_range(int32_t(begin) - int32_t(from), int32_t(row) - int32_t(from)) : 0;
    }
    // Signs, the first column's in the highest bit.
    uint32_t below[2][2] = {};
    const float one_and_threshold = 1.0f + p.iou_threshold;
#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
#pragma unroll 8
        for (uint32_t j = half * 32; j < half * 32 + 32; j++) {
            const float4 c = column[j];
            const float c_bound = column_bound[j];
#pragma unroll
            for (uint32_t r = 0; r < 2; r++) {
                const float e = excess(c, c_bound, b[r], b_bound[r], one_and_threshold);
                below[r][half] = __funnelshift_l(__float_as_uint(e), below[r][half], 1);
            }
        }
    }
    masks += ((image * p.blocks + block) * p.words + back) * 64;
#pragma unroll
    for (uint32_t r = 0; r < 2; r++) {
        uint64_t word = ~(uint64_t(__brev(below[r][1])) << 32 | __brev(below[r][0])) & range[r];
        for (uint64_t open = word; open != 0; open &= open - 1) {
            const int j = __ffsll((long long)open) - 1;
            if (!suppresses(column[j], b[r], p.iou_threshold)) word &= ~(uint64_t(1) << j);
        }
        masks[r * 32 + lane] = word;
    }
}

constexpr int RESOLVE_THREADS = 512;
constexpr uint32_t MAX_WORDS = 64;
constexpr uint32_t PARTS = RESOLVE_THREADS / 64;

// state [B,groups]: how many were kept of a group before this round, and with it.
KERNEL(RESOLVE_THREADS, nms_resolve_f32,
       (uint64_t * keys, float* placed, uint2* state, const uint8_t* removed, const uint64_t* masks, const uint32_t* starts,
        NmsParams p)) {
    SHARED(uint64_t, kept, MAX_WORDS);
    SHARED(uint32_t, hits, RESOLVE_THREADS / 32);
    const uint32_t g = blockIdx.x, t = threadIdx.x, row = t % 64, part = t / 64;
    const int64_t image = blockIdx.y;
    keys += image * p.n;
    float4* box = reinterpret_cast<float4*>(placed) + image * p.n;
    removed += image * p.n;
    masks += image * p.blocks * p.words * 64;
    state += image * p.groups + g;
    starts += image * (p.groups + 1);
    const uint32_t begin = starts[g], end = starts[g + 1], before = p.round == 0 ? 0 : state->y;
    const uint32_t first = begin / 64 + p.round * p.words;
    if (begin >= end || first > (end - 1) / 64 || before >= p.max_out) {  // the whole block
        __syncthreads();                                                  // all have read state
        if (t == 0) *state = {before, before};
        return;
    }
    const uint32_t last = min((end - 1) / 64, first + p.words - 1);

    // Words 1 + part + PARTS k of the row, for the block that comes; the first warp holds word 0 of two rows instead.
    uint64_t word[MAX_WORDS / PARTS], own[2] = {};
    bool gone[2] = {};
    const auto fetch = [&](uint32_t block) {
        const uint64_t* m = masks + int64_t(block) * p.words * 64 + row;
#pragma unroll
        for (uint32_t k = 0; k < MAX_WORDS / PARTS; k++) {
            const uint32_t c = 1 + part + PARTS * k;
            word[k] = block <= last && c <= block - first ? m[c * 64] : 0;
        }
        if (t >= 32 || block > last) return;
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            const uint32_t at = block * 64 + r * 32 + t;
            own[r] = masks[int64_t(block) * p.words * 64 + r * 32 + t];
            gone[r] = at >= begin && at < end ? removed[at] != 0 : true;
        }
    };
    fetch(first);
    uint32_t count = before;
    for (uint32_t block = first; block <= last && count < p.max_out; block++) {
        const uint32_t nth = block - first, at = block * 64 + row;
        uint64_t hit = 0;
#pragma unroll
        for (uint32_t k = 0; k < MAX_WORDS / PARTS; k++) {
            const uint32_t c = 1 + part + PARTS * k;
            if (c <= nth) hit |= word[k] & kept[nth - c];
        }
        const uint32_t lanes = __ballot_sync(FULL_WARP, hit != 0);
        if (lane_id() == 0) hits[warp_id()] = lanes;
        const uint64_t mask[2] = {own[0], own[1]};
        const bool out[2] = {gone[0], gone[1]};
        // Read before anybody moves kept keys to the front; the next block's words while the first warp decides.
        const bool inside = t < 64 && at >= begin && at < end;
        const uint64_t key = inside ? keys[at] : 0;
        const float4 b = inside ? box[at] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        fetch(block + 1);
        __syncthreads();
        if (t < 32) {
            // Even warps had rows 0..32, odd warps the others.
            uint32_t h = t < RESOLVE_THREADS / 32 ? hits[t] : 0;
            for (int d = 2; d < 32; d *= 2) h |= __shfl_xor_sync(FULL_WARP, h, d);
            const uint64_t low = __shfl_sync(FULL_WARP, h, 0), high = __shfl_sync(FULL_WARP, h, 1);
            const uint64_t candidates = uint64_t(__ballot_sync(FULL_WARP, !out[1])) << 32 | __ballot_sync(FULL_WARP, !out[0]);
            uint64_t open = candidates & ~(high << 32 | low), in = 0;
            while (open != 0) {
                uint64_t goes = 0, stays = 0;
#pragma unroll
                for (uint32_t r = 0; r < 2; r++) {
                    const bool is_open = open >> (r * 32 + t) & 1, hit_now = (mask[r] & in) != 0;
                    goes |= uint64_t(__ballot_sync(FULL_WARP, is_open && hit_now)) << (r * 32);
                    stays |= uint64_t(__ballot_sync(FULL_WARP, is_open && !hit_now && (mask[r] & open) == 0)) << (r * 32);
                }
                in |= stays;
                open &= ~(goes | stays);
            }
            if (t == 0) kept[nth] = in;
        }
        __syncthreads();
        const uint64_t in = kept[nth];
        if (inside && (in >> row & 1)) {
            const uint32_t to = begin + count + uint32_t(__popcll(in & ((uint64_t(1) << row) - 1)));
            keys[to] = key;
            box[to] = b;
        }
        count += uint32_t(__popcll(in));
    }
    if (t == 0) *state = {before, count};
}

constexpr uint32_t CROSS_KEPT = 512;

// Blocks along y: CROSS_KEPT boxes each of those kept in the round.
KERNEL(256, nms_cross_f32,
       (uint8_t * removed, const uint64_t* keys, const float* placed, const uint2* state, const uint32_t* starts, NmsParams p)) {
    const int64_t image = blockIdx.z;
    const uint32_t at = uint32_t(global_thread());
    starts += image * (p.groups + 1);
    if (at >= starts[p.groups]) return;
    const uint32_t g = group_in(keys[image * p.n + at], p), begin = starts[g];
    if (at / 64 < begin / 64 + (p.round + 1) * p.words) return;
    const uint2 kept = state[image * p.groups + g];
    if (kept.y >= p.max_out) return;
    const float4* box = reinterpret_cast<const float4*>(placed) + image * p.n;
    const float4 b = box[at];
    const uint32_t from = kept.x + blockIdx.y * CROSS_KEPT, to = min(kept.y, from + CROSS_KEPT);
    bool gone = false;
    for (uint32_t i = from; i < to && !gone; i++) gone = suppresses(box[begin + i], b, p.iou_threshold);
    if (gone) removed[image * p.n + at] = 1;
}

KERNEL(256, nms_output_i32, (int32_t * keep, const uint64_t* keys, const uint2* state, const uint32_t* starts, NmsParams p)) {
    SHARED(uint32_t, scratch, 32);
    const int64_t image = blockIdx.y;
    keys += image * p.n;
    state += image * p.groups;
    starts += image * (p.groups + 1);
    keep += image * p.max_out;
    // What lies behind the kept of all groups.
    uint32_t all = 0;
    for (uint32_t g = threadIdx.x; g < p.groups && p.n > 0; g += blockDim.x) all += min(state[g].y, p.max_out);
    all = block_reduce(all, Sum(), 0u, scratch);
    for (int64_t i = all + global_thread(); i < p.max_out; i += global_threads()) keep[i] = -1;

    const uint32_t at = uint32_t(global_thread() / 8), lane = threadIdx.x % 8;
    bool is_kept = p.n > 0 && at < starts[p.groups];
    const uint64_t key = is_kept ? keys[at] : 0, low = (uint64_t(1) << key_shift(p)) - 1;
    const uint32_t own = group_in(key, p), nth = is_kept ? at - starts[own] : 0;
    is_kept = is_kept && nth < min(state[own].y, p.max_out);
    uint32_t before = 0;
    for (uint32_t g = lane; is_kept && g < p.groups; g += 8) {
        const uint32_t kept = min(state[g].y, p.max_out);
        if (g == own || kept == 0) continue;
        // Within a group keys ascend as (rank, index) do: the group's bits are those of g.
        before += lower_bound(keys + starts[g], kept, (key & low) | uint64_t(g) << key_shift(p));
    }
    before = eight_sum(before) + nth;
    if (is_kept && lane == 0 && before < p.max_out) keep[before] = int32_t(index_in(key, p));
}
