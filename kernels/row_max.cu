// Maximum of each row. x [M,K], y [M] f32. One pass. Deterministic; NaN wins over numbers.
#include "common/reduce.cuh"

struct RowMaxParams {
    uint32_t m, k;
};
static_assert(sizeof(RowMaxParams) == 8, "mirror of src/ops/row_max/cuda.rs");

constexpr uint32_t LANES = 8;
constexpr int64_t ROWS = WARP / LANES;

struct Larger {
    __device__ __forceinline__ float operator()(float a, float b) const { return b > a || b != b ? b : a; }
};

// warp w of the grid   rows 4 w .. 4 w + 3, then 4 x (grid warps) further; lanes 8 r .. 8 r + 7 own row 4 w + r
// lane l of a row      vectors l, l + 8, ...: 16 bytes if K is a multiple of four, else one element
//                      three shuffles combine the eight lanes; rows past the last only take part in the shuffles
template <int V> __device__ __forceinline__ void row_max(float* y, const float* x, RowMaxParams p) {
    const uint32_t lane = lane_id() % LANES;
    for (int64_t from = global_thread() / WARP * ROWS; from < int64_t(p.m); from += global_threads() / WARP * ROWS) {
        const int64_t row = from + lane_id() / LANES;
        float most = -INFINITY;
        if (row < int64_t(p.m)) {
            for (uint32_t i = lane * V; i < p.k; i += LANES * V) {
                const Pack<float, V> v = load_pack<V>(x + row * p.k + i);
#pragma unroll
                for (int j = 0; j < V; j++) most = Larger()(most, v.v[j]);
            }
        }
        for (uint32_t d = LANES / 2; d > 0; d /= 2) most = Larger()(most, __shfl_xor_sync(FULL_WARP, most, d));
        if (lane == 0 && row < int64_t(p.m)) y[row] = most;
    }
}

KERNEL(256, row_max_f32, (float* y, const float* x, RowMaxParams p)) {
    if (p.k % 4 == 0) row_max<4>(y, x, p);
    else row_max<1>(y, x, p);
}
