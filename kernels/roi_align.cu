// RoIAlign. Levels (and their gradients) x_l [N,H_l,W_l,C], y, dy [N*S,PH,PW,C] T; rois [N,S,4] f32; valid [N,S] i32; sums in f32.
// The mean over a bin is a weighted sum over rows x columns of pixels: each axis of a RoI gets a table in shared memory, the
// pixels of each bin and their weights, samples that share a pixel merged, as on the CPU.
//
// Forward: a block has some rows of a RoI's bins, all levels in one launch; one thread a 16-byte vector of channels of a bin.
// Reads each pixel of the RoI about twice (from cache), writes y once. Deterministic.
// Backward: `place` notes which pixels each RoI touches; then a block owns a tile of 4 x 8 pixels and 32 vectors of channels of
// one image and level: it lists its RoIs in order, and batch by batch makes their tables, lists the bins that reach a pixel
// (one warp a column of pixels, one lane a RoI) and adds their gradients in registers. Writes dx once, also where it is 0.
// Each element is summed by one thread in the order of the RoIs: deterministic.
// Backward `atomic`: as the forward pass, but adds to the f32 buffers sum_l; the order of the additions is not fixed.
#include "common/reduce.cuh"

constexpr int MAX_LEVELS = 8;

struct RoiAlignParams {
    uint32_t rois;       // N*S
    uint32_t per_image;  // S
    uint32_t c, ph, pw;
    uint32_t sampling_ratio, aligned, levels;
    float finest_scale_px;
    uint32_t bin_rows;  // rows of bins of a block (forward, atomic)
    uint32_t weights;   // weights that its tables hold
    uint32_t batch;     // RoIs whose tables a block holds (backward), at most 32
    uint32_t h[MAX_LEVELS], w[MAX_LEVELS];
    float stride_px[MAX_LEVELS];
    uint32_t first_row[MAX_LEVELS];   // rows of the finer levels
    uint32_t first_tile[MAX_LEVELS];  // tiles of the finer levels, all images
};
static_assert(sizeof(RoiAlignParams) == 4 * (12 + 5 * MAX_LEVELS), "mirror of src/ops/roi_align/cuda.rs");

#define LEVELS(T, X) T *X##0, T *X##1, T *X##2, T *X##3, T *X##4, T *X##5, T *X##6, T *X##7
#define EACH_LEVEL(X) X##0, X##1, X##2, X##3, X##4, X##5, X##6, X##7

// That of level l; an array of them would be in local memory.
template <typename T> __device__ __forceinline__ T* pick(uint32_t l, LEVELS(T, x)) {
    T* const even = l < 4 ? (l < 2 ? x0 : x2) : (l < 6 ? x4 : x6);
    T* const odd = l < 4 ? (l < 2 ? x1 : x3) : (l < 6 ? x5 : x7);
    return l % 2 == 0 ? even : odd;
}

// `RoiAlign::level`.
__device__ __forceinline__ uint32_t level_of(float4 roi, const RoiAlignParams& p) {
    const float side = sqrtf((roi.z - roi.x) * (roi.w - roi.y));
    const float ratio = side / p.finest_scale_px + 1e-6f;
    uint32_t level = 0;
    for (uint32_t l = 1; l < p.levels; l++) level += ratio >= float(1u << l);
    return level;
}

// One axis of a RoI in pixels of its level; each bin has `grid` samples.
struct Axis {
    float start, size, bin, grid;
    int pixels;
};

// The rows of a RoI, or its columns.
__device__ __forceinline__ Axis make_axis(float4 roi, bool rows, uint32_t l, const RoiAlignParams& p) {
    const float lo = rows ? roi.y : roi.x, hi = rows ? roi.w : roi.z, bins = float(rows ? p.ph : p.pw);
    const float scale = 1.0f / p.stride_px[l], offset = p.aligned != 0 ? 0.5f : 0.0f;
    Axis a;
    a.start = lo * scale - offset;
    a.size = (hi * scale - offset) - a.start;
    if (p.aligned == 0 && !(a.size > 1.0f)) a.size = 1.0f;
    a.bin = a.size / bins;
    const float adaptive = ceilf(a.bin);
    a.grid = p.sampling_ratio > 0 ? float(p.sampling_ratio) : adaptive > 0.0f ? adaptive : 0.0f;
    a.pixels = int(rows ? p.h[l] : p.w[l]);
    return a;
}

// NaN stays.
__device__ __forceinline__ float clamp(float v, float lo, float hi) { return v < lo ? lo : v > hi ? hi : v; }

// Calls `f(pixel, weight, next pixel, its weight)` for each sample of bin b that is inside, in order: pixels do not fall. The
// arithmetic is `Axis::fill`'s of cpu.rs.
template <typename F> __device__ __forceinline__ void each_sample(const Axis& a, uint32_t b, F f) {
    const float origin = a.start + float(b) * a.bin;
    // The samples that can be inside: a RoI far larger than the image must not cost more than the image.
    float first = 0.0f, n = a.bin == 0.0f ? a.grid : 0.0f;
    if (a.bin > 0.0f) {
        first = clamp(floorf((-1.0f - origin) / a.bin * a.grid - 0.5f) - 1.0f, 0.0f, a.grid);
        n = clamp(ceilf((float(a.pixels) - origin) / a.bin * a.grid - 0.5f) + 2.0f, 0.0f, a.grid) - first;
    }
    const float share = 1.0f / a.grid;
    const int count = n > 0.0f ? int(fminf(n, 1e9f)) : 0;
#pragma unroll 1
    for (int i = 0; i < count; i++) {
        float v = origin + (first + float(i) + 0.5f) * a.bin / a.grid;
        if (!(v >= -1.0f && v <= float(a.pixels))) continue;
        v = fmaxf(v, 0.0f);
        const int low = min(int(v), a.pixels - 1), high = min(low + 1, a.pixels - 1);
        const float frac = low == high ? 0.0f : v - float(low);
        f(low, (1.0f - frac) * share, high, frac * share);
    }
}

// The tables of a block's rows of bins, then of all columns of bins: bin b has the pixels from first[b] on and weights
// at[b]..at[b + 1].
struct Tables {
    int *first, *count, *at;
    float* weights;
};

// Bytes of it in cuda.rs: `bin_tables`.
__device__ __forceinline__ Tables make_tables(int* shared, const RoiAlignParams& p) {
    const uint32_t bins = p.bin_rows + p.pw;
    return {shared, shared + bins, shared + 2 * bins, reinterpret_cast<float*>(shared + 3 * bins + 1)};
}

// All threads of the block call it. `rows` rows of bins from row i0 on.
__device__ void fill_tables(const Tables& t, float4 roi, uint32_t l, uint32_t i0, uint32_t rows, const RoiAlignParams& p) {
    const uint32_t bins = rows + p.pw;
    for (uint32_t b = threadIdx.x; b < bins; b += blockDim.x) {
        int first = 0, count = 0;
        each_sample(make_axis(roi, b < rows, l, p), b < rows ? i0 + b : b - rows, [&](int low, float, int high, float) {
            first = count == 0 ? low : first;
            count = high - first + 1;
        });
        t.first[b] = first;
        t.count[b] = count;
    }
    __syncthreads();
    for (uint32_t b = threadIdx.x; b < bins; b += blockDim.x) {
        // Bins of an axis share two pixels at most, so that their weights fit, except where coordinates are so large that
        // samples jump: then some are left out.
        const int room = int(p.weights);
        int at = 0;
#pragma unroll 1
        for (uint32_t k = 0; k < b; k++) at = min(at + t.count[k], room);
        const int count = min(t.count[b], room - at), first = t.first[b];
        t.at[b] = at;
        if (b + 1 == bins) t.at[bins] = at + count;
        float* const w = t.weights + at;
#pragma unroll 1
        for (int k = 0; k < count; k++) w[k] = 0.0f;
        each_sample(make_axis(roi, b < rows, l, p), b < rows ? i0 + b : b - rows, [&](int low, float wl, int high, float wh) {
            if (high - first >= count) return;
            w[low - first] += wl;
            w[high - first] += wh;
        });
    }
    __syncthreads();
}

template <typename T, int V> __device__ __forceinline__ void
roi_align_fwd(T* y, LEVELS(const T, x), const float4* rois, const int32_t* valid, const RoiAlignParams& p) {
    DYNAMIC_SHARED(int, shared);
    const uint32_t r = blockIdx.x, i0 = blockIdx.y * p.bin_rows, rows = min(p.bin_rows, p.ph - i0), vectors = p.c / V;
    const uint32_t items = rows * p.pw * vectors;
    T* const out = y + (int64_t(r) * p.ph + i0) * p.pw * p.c;
    if (valid[r] < 0) {
        Pack<T, V> zero;
        for (int k = 0; k < V; k++) zero.v[k] = store<T>(0.0f);
        for (uint32_t i = threadIdx.x; i < items; i += blockDim.x) store_pack(out + int64_t(i) * V, zero);
    } else {
        const float4 roi = rois[r];
        const uint32_t l = level_of(roi, p);
        const int64_t w = p.w[l];
        const T* const image = pick<const T>(l, EACH_LEVEL(x)) + int64_t(r / p.per_image) * p.h[l] * w * p.c;
        const Tables t = make_tables(shared, p);
        fill_tables(t, roi, l, i0, rows, p);
        for (uint32_t item = threadIdx.x; item < items; item += blockDim.x) {
            const uint32_t channel = item % vectors * V, bin = item / vectors, i = bin / p.pw, j = rows + bin % p.pw;
            const float *wy = t.weights + t.at[i], *wx = t.weights + t.at[j];
            const int ny = t.at[i + 1] - t.at[i], nx = t.at[j + 1] - t.at[j];
            const T* row = image + (t.first[i] * w + t.first[j]) * p.c + channel;
            float sum[V] = {};
            for (int a = 0; a < ny; a++, row += w * p.c) {
                const T* from = row;
#pragma unroll 4
                for (int b = 0; b < nx; b++, from += p.c) {
                    const float weight = wy[a] * wx[b];
                    const Pack<T, V> v = load_pack<V>(from);
                    for (int k = 0; k < V; k++) sum[k] = fmaf(weight, load(v.v[k]), sum[k]);
                }
            }
            Pack<T, V> v;
            for (int k = 0; k < V; k++) v.v[k] = store<T>(sum[k]);
            store_pack(out + int64_t(item) * V, v);
        }
    }
}

template <typename T> __device__ __forceinline__ void
roi_align_bwd_atomic(LEVELS(float, sum), const T* dy, const float4* rois, const int32_t* valid, const RoiAlignParams& p) {
    DYNAMIC_SHARED(int, shared);
    const uint32_t r = blockIdx.x, i0 = blockIdx.y * p.bin_rows, rows = min(p.bin_rows, p.ph - i0);
    if (valid[r] >= 0) {
        const float4 roi = rois[r];
        const uint32_t l = level_of(roi, p);
        const int64_t w = p.w[l];
        float* const image = pick<float>(l, EACH_LEVEL(sum)) + int64_t(r / p.per_image) * p.h[l] * w * p.c;
        const Tables t = make_tables(shared, p);
        fill_tables(t, roi, l, i0, rows, p);
        // Neighbouring threads have neighbouring channels: the additions of a warp meet in few cache lines.
        for (uint32_t item = threadIdx.x; item < rows * p.pw * p.c; item += blockDim.x) {
            const uint32_t channel = item % p.c, bin = item / p.c, i = bin / p.pw, j = rows + bin % p.pw;
            const float *wy = t.weights + t.at[i], *wx = t.weights + t.at[j];
            const int ny = t.at[i + 1] - t.at[i], nx = t.at[j + 1] - t.at[j];
            const float g = load(dy[(int64_t(r) * p.ph + i0) * p.pw * p.c + item]);
            float* row = image + (t.first[i] * w + t.first[j]) * p.c + channel;
            for (int a = 0; a < ny; a++, row += w * p.c) {
                for (int b = 0; b < nx; b++) atomicAdd(row + int64_t(b) * p.c, wy[a] * wx[b] * g);
            }
        }
    }
}

// The rows (counted on from the finer levels' last) and columns that a RoI can touch, none if it is not valid:
// [first row, end row, first column, end column].
KERNEL(128, roi_align_place_i32, (int4 * place, const float4* rois, const int32_t* valid, RoiAlignParams p)) {
    for (int64_t r = global_thread(); r < p.rois; r += global_threads()) {
        int4 box = make_int4(0, 0, 0, 0);
        if (valid[r] >= 0) {
            const float4 roi = rois[r];
            const uint32_t l = level_of(roi, p);
            // A sample at v adds to floor(v) and floor(v) + 1; those in [-1, 0) to 0 and those beyond the last pixel to it. One
            // pixel more on either side for rounding. NaN touches nothing.
            const auto span = [](const Axis& a, int& first, int& end) {
                const float lo = clamp(fminf(a.start, a.start + a.size), -1.0f, float(a.pixels));
                const float hi = clamp(fmaxf(a.start, a.start + a.size), -1.0f, float(a.pixels));
                if (!(a.size > 0.0f || a.size <= 0.0f)) return;
                first = clamp(floorf(lo) - 1.0f, 0.0f, float(a.pixels));
                end = clamp(floorf(hi) + 3.0f, 0.0f, float(a.pixels));
            };
            span(make_axis(roi, true, l, p), box.x, box.y);
            span(make_axis(roi, false, l, p), box.z, box.w);
            box.x += int(p.first_row[l]);
            box.y += int(p.first_row[l]);
        }
        place[r] = box;
    }
}

constexpr int TILE_H = 4, TILE_W = 8;
constexpr int WARPS = TILE_W;
constexpr int GATHER_THREADS = WARPS * WARP;
constexpr int CHUNK = GATHER_THREADS * 4;  // RoIs listed at once: one count a warp and turn, 32 of them
constexpr int TAPS = 64;                   // bins that a warp lists at once
static_assert(CHUNK / WARP == WARP, "the counts of a chunk are summed by one warp");

// A bin that reaches a pixel: its row of dy and its weight.
struct alignas(8) Tap {
    uint32_t row;
    float weight;
};
static_assert(sizeof(Tap) * WARPS * TAPS + 4 * (CHUNK + WARP) == 8320, "GATHER_BYTES of src/ops/roi_align/cuda.rs");

// This lane's entries of the tables for a row of bins or, from ph on, a column: the weights for the pixels of the tile, -1 where
// the bin does not reach the pixel. (A bin with few samples skips pixels: they are reached, with weight 0.)
__device__ __forceinline__ void
fill_line(float* table, float4 roi, uint32_t b, uint32_t l, int row0, int col0, const RoiAlignParams& p) {
    const bool rows = b < p.ph;
    const uint32_t bins = rows ? p.ph : p.pw, step = bins * p.batch;
    const int pixels = rows ? TILE_H : TILE_W, tile0 = rows ? row0 : col0;
    if (!rows) {
        table += TILE_H * p.ph * p.batch;
        b -= p.ph;
    }
    float* const w = table + b * p.batch + lane_id();
    for (int k = 0; k < pixels; k++) w[k * step] = 0.0f;
    const Axis a = make_axis(roi, rows, l, p);
    const float origin = a.start + float(b) * a.bin;
    int begin = 0, end = 0;
    if (origin - 2.0f <= float(tile0 + pixels) && origin + a.bin + 2.0f >= float(tile0)) {
        const auto add = [&](int pixel, float weight) {
            if (uint32_t(pixel - tile0) < uint32_t(pixels)) w[(pixel - tile0) * step] += weight;
        };
        each_sample(a, b, [&](int low, float wl, int high, float wh) {
            begin = end == 0 ? low : begin;
            end = high + 1;
            add(low, wl);
            add(high, wh);
        });
    }
    for (int k = 0; k < pixels; k++) {
        if (tile0 + k < begin || tile0 + k >= end) w[k * step] = -1.0f;
    }
}

// The bins that reach a pixel, consecutive since samples are in order: the first, and how many.
__device__ __forceinline__ void reaching(const float* w, uint32_t step, uint32_t bins, uint32_t& first, uint32_t& count) {
    first = 0;
    while (first < bins && w[first * step] < 0.0f) first++;
    count = 0;
    while (first + count < bins && w[(first + count) * step] >= 0.0f) count++;
}

template <typename T, int V> __device__ __forceinline__ void
roi_align_bwd(LEVELS(T, dx), const T* dy, const float4* rois, const int4* place, const RoiAlignParams& p) {
    const int lane = lane_id(), warp = warp_id();
    DYNAMIC_SHARED(Tap, all_taps);
    Tap* const taps = all_taps + warp * TAPS;
    int *const list = reinterpret_cast<int*>(all_taps + WARPS * TAPS), *const counts = list + CHUNK;
    float* const table = reinterpret_cast<float*>(counts + WARP);  // [TILE_H, ph, batch], then [TILE_W, pw, batch]

    uint32_t l = 0;
    while (l + 1 < p.levels && blockIdx.x >= p.first_tile[l + 1]) l++;
    const uint32_t h = p.h[l], w = p.w[l], tiles_h = (h + TILE_H - 1) / TILE_H, tiles_w = (w + TILE_W - 1) / TILE_W;
    const uint32_t tile = blockIdx.x - p.first_tile[l], image = tile / tiles_w / tiles_h;
    const int row0 = int(tile / tiles_w % tiles_h) * TILE_H, col0 = int(tile % tiles_w) * TILE_W;
    const int place_row = row0 + int(p.first_row[l]);
    const uint32_t first_channel = (blockIdx.y * WARP + uint32_t(lane)) * V;
    const bool active = first_channel < p.c;
    const T* const from = dy + (active ? first_channel : 0);  // lanes without a channel read along
    rois += int64_t(image) * p.per_image;
    place += int64_t(image) * p.per_image;
    const uint32_t bins = p.ph * p.pw, batch = p.batch;
    float* const columns = table + TILE_H * p.ph * batch;

    float sum[TILE_H][V] = {};
    for (uint32_t chunk = 0; chunk < p.per_image; chunk += CHUNK) {
        // The RoIs of the chunk that touch the tile, in order.
        uint32_t hits[4];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const uint32_t r = chunk + k * GATHER_THREADS + threadIdx.x;
            bool hit = false;
            if (r < p.per_image) {
                const int4 box = place[r];
                hit = box.x < place_row + TILE_H && box.y > place_row && box.z < col0 + TILE_W && box.w > col0;
            }
            hits[k] = __ballot_sync(FULL_WARP, hit);
            if (lane == 0) counts[k * WARPS + warp] = __popc(hits[k]);
        }
        __syncthreads();
        const int mine = counts[lane], before = warp_exclusive_sum(mine);
        const int found = __shfl_sync(FULL_WARP, before + mine, WARP - 1);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const int at = __shfl_sync(FULL_WARP, before, k * WARPS + warp) + __popc(hits[k] & ((1u << lane) - 1));
            if (hits[k] >> lane & 1) list[at] = int(chunk + k * GATHER_THREADS + threadIdx.x);
        }
        __syncthreads();

        for (int at = 0; at < found; at += int(batch)) {
            const bool has = lane < min(int(batch), found - at);
            const int r = has ? list[at + lane] : 0;
            if (has) {
                const float4 roi = rois[r];
                for (uint32_t b = warp; b < p.ph + p.pw; b += WARPS) fill_line(table, roi, b, l, row0, col0, p);
            }
            __syncthreads();

            const float* const wx = columns + warp * p.pw * batch + lane;
            uint32_t j0 = 0, nx = 0;
            if (has) reaching(wx, batch, p.pw, j0, nx);
            const uint32_t first_bin = (image * p.per_image + uint32_t(r)) * bins;
#pragma unroll
            for (int t = 0; t < TILE_H; t++) {
                const float* const wy = table + t * p.ph * batch + lane;
                uint32_t i0 = 0, ny = 0;
                if (nx > 0) reaching(wy, batch, p.ph, i0, ny);
                const int mine = int(nx * ny), before = warp_exclusive_sum(mine);
                const int total = __shfl_sync(FULL_WARP, before + mine, WARP - 1);
                for (int begin = 0; begin < total; begin += TAPS) {
                    if (mine > 0) {
                        int k = before - begin;
                        for (uint32_t j = j0; j < j0 + nx; j++) {
                            for (uint32_t i = i0; i < i0 + ny; i++, k++) {
                                if (k >= 0 && k < TAPS) taps[k] = {first_bin + i * p.pw + j, wx[j * batch] * wy[i * batch]};
                            }
                        }
                    }
                    __syncwarp();
                    const int n = min(TAPS, total - begin);
#pragma unroll 4
                    for (int k = 0; k < n; k++) {
                        const Tap tap = taps[k];
                        const Pack<T, V> g = load_pack<V>(from + int64_t(tap.row) * p.c);
                        for (int v = 0; v < V; v++) sum[t][v] = fmaf(tap.weight, load(g.v[v]), sum[t][v]);
                    }
                    __syncwarp();
                }
            }
            __syncthreads();
        }
    }

    const int col = col0 + warp;
    T* const to = pick<T>(l, EACH_LEVEL(dx)) + int64_t(image) * h * w * p.c;
#pragma unroll
    for (int t = 0; t < TILE_H; t++) {
        if (active && col < int(w) && row0 + t < int(h)) {
            Pack<T, V> out;
            for (int v = 0; v < V; v++) out.v[v] = store<T>(sum[t][v]);
            store_pack(to + (int64_t(row0 + t) * w + col) * p.c + first_channel, out);
        }
    }
}

#define KERNELS(T, S)                                                                                                     \
    KERNEL(224, roi_align_fwd_##S, (T * y, LEVELS(const T, x), const float4* rois, const int32_t* valid,                  \
                                    RoiAlignParams p)) {                                                                  \
        if (p.c % VEC<T> == 0) roi_align_fwd<T, VEC<T>>(y, EACH_LEVEL(x), rois, valid, p);                                \
        else roi_align_fwd<T, 1>(y, EACH_LEVEL(x), rois, valid, p);                                                       \
    }                                                                                                                     \
    KERNEL(GATHER_THREADS, roi_align_bwd_##S, (LEVELS(T, dx), const T* dy, const float4* rois, const int4* place,         \
                                               RoiAlignParams p)) {                                                       \
        if (p.c % VEC<T> == 0) roi_align_bwd<T, VEC<T>>(EACH_LEVEL(dx), dy, rois, place, p);                              \
        else roi_align_bwd<T, 1>(EACH_LEVEL(dx), dy, rois, place, p);                                                     \
    }                                                                                                                     \
    KERNEL(256, roi_align_bwd_atomic_##S, (LEVELS(float, sum), const T* dy, const float4* rois, const int32_t* valid,     \
                                           RoiAlignParams p)) {                                                           \
        roi_align_bwd_atomic<T>(EACH_LEVEL(sum), dy, rois, valid, p);                                                     \
    }                                                                                                                     \
    /* After the atomic kernel: its sums to the type of dx. */                                                            \
    KERNEL(256, roi_align_round_##S, (T * dx, const float* sum, int64_t n)) {                                             \
        for (int64_t i = global_thread(); i < n; i += global_threads()) dx[i] = store<T>(sum[i]);                         \
    }
FOR_FLOATS(KERNELS)
