// Windows of a padded, cyclically shifted map, for window attention. Tokens of a window are numbered row by row.
#pragma once

#include "kernel.cuh"

struct WindowAttentionParams {
    uint32_t n, h, w, c, heads, d;       // d: channels of a head
    uint32_t side, shift, down, across;  // side and shift in tokens; windows in a column and in a row of a map
    uint32_t windows, per_block;         // windows of all maps; windows of a block
    float scale;
};
static_assert(sizeof(WindowAttentionParams) == 52, "mirror of src/ops/window_attention/cuda.rs");

constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;
// Added to the score of two tokens of different regions. Scores are kept times log2(e), so that exp2f turns them into
// probabilities.
constexpr float MASKED = -100.0f * LOG2_E;

__device__ __forceinline__ uint32_t tokens_of(const WindowAttentionParams& p) { return p.side * p.side; }
__device__ __forceinline__ uint32_t entries_of(const WindowAttentionParams& p) { return (2 * p.side - 1) * (2 * p.side - 1); }
__device__ __forceinline__ bool has_padding(const WindowAttentionParams& p) { return p.h % p.side != 0 || p.w % p.side != 0; }

// Number of partial sums of a block: the table's gradient by head, then, if the map is padded, the gradients of the
// padded tokens' k and v.
__device__ __forceinline__ int64_t partial_columns(const WindowAttentionParams& p) {
    return int64_t(p.heads) * entries_of(p) + (has_padding(p) ? 2 * p.c : 0);
}

// Locates the window's tokens. `pixel`: the token's pixel, counted over all maps, or -1 for padding. `tag`: its
// position in the low 16 bits, such that differences of positions are rows of the table, and its region of the map in
// the high 16 bits. Slots past the last token, up to `slots`, get pixel -1 and tag 0. All threads of the block call it:
// thread t fills slots t, t + blockDim.x, ...
__device__ __forceinline__ void fill_tokens(int32_t* pixel, int32_t* tag, uint32_t window, uint32_t slots, const WindowAttentionParams& p) {
    const uint32_t row = window / p.across % p.down, column = window % p.across, map = window / (p.across * p.down);
    const uint32_t height = p.down * p.side, width = p.across * p.side, end = p.side - p.shift;
    for (uint32_t t = threadIdx.x; t < slots; t += blockDim.x) {
        const uint32_t a = t / p.side, b = t % p.side;
        uint32_t i = row * p.side + a + p.shift, j = column * p.side + b + p.shift;
        if (i >= height) i -= height;
        if (j >= width) j -= width;
        const bool real = t < tokens_of(p) && i < p.h && j < p.w;
        pixel[t] = real ? int32_t((map * p.h + i) * p.w + j) : -1;
        const uint32_t region = (row + 1 == p.down && a >= end ? 2 : 0) + (column + 1 == p.across && b >= end ? 1 : 0);
        tag[t] = t < tokens_of(p) ? int32_t(a * (2 * p.side - 1) + b + (region << 16)) : 0;
    }
}

// Loads the table's column of one head, times log2(e). All threads of the block call it.
__device__ __forceinline__ void fill_table(float* to, const float* table, uint32_t head, const WindowAttentionParams& p) {
    for (uint32_t e = threadIdx.x; e < entries_of(p); e += blockDim.x) to[e] = table[int64_t(e) * p.heads + head] * LOG2_E;
}

// Row of the table for the tags of a query and a key.
__device__ __forceinline__ int entry(int32_t query, int32_t key, const WindowAttentionParams& p) {
    return (query & 0xffff) - (key & 0xffff) + int(2 * p.side * (p.side - 1));
}

// The part of the score that is added to the product of query and key: position bias and mask.
__device__ __forceinline__ float bias_of(const float* table, int32_t query, int32_t key, const WindowAttentionParams& p) {
    return table[entry(query, key, p)] + ((query ^ key) >> 16 != 0 ? MASKED : 0.0f);
}
