// Bias and ReLU after a convolution or a matrix product, and the bias's gradient. y, dy [M,O] T; bias [O] f32 or null;
// db [O] f32. Forward: in place, one pass over y. Gradient, a sum over rows: the first kernel sums chunks of rows into
// `partial` [chunks,O] f32, the second adds the chunks, in a fixed order. One pass over dy. Deterministic.
#include "common/kernel.cuh"

struct BiasParams {
    uint64_t rows;
    uint32_t columns, relu;
};
static_assert(sizeof(BiasParams) == 16, "mirror of src/ops/common/bias.rs");

// thread i   vector i of y, then i + grid threads; columns from (i % (O / V)) V on
//            16 bytes a vector, or one element if O is no multiple of it: neighbouring threads, neighbouring addresses
//            one thread owns each vector, so y is updated in place
template <typename T, int V> __device__ void bias_fwd(T* y, const float* bias, BiasParams p) {
    const uint32_t vectors = p.columns / V;
    const int64_t count = int64_t(p.rows) * vectors;
    for (int64_t i = global_thread(); i < count; i += global_threads()) {
        const uint32_t c = uint32_t(i % vectors) * V;
        T* at = y + i / vectors * p.columns + c;
        Pack<T, V> v = load_pack<V>(at);
        Pack<float, V> b = {};
        if (bias) b = load_pack<V>(bias + c);
#pragma unroll
        for (int k = 0; k < V; k++) {
            float sum = load(v.v[k]);
            if (bias) sum += b.v[k];
            v.v[k] = store<T>(p.relu && sum < 0.0f ? 0.0f : sum);  // NaN stays NaN
        }
        store_pack(at, v);
    }
}

struct BiasGradParams {
    uint64_t rows, rows_per_chunk;
    uint32_t columns, chunks, accumulate, unused;
};
static_assert(sizeof(BiasGradParams) == 32, "mirror of src/ops/common/bias.rs");

constexpr int BIAS_ROWS = 8;
constexpr int UNROLL = 8;

// block (x, y)   chunk x of rows, columns 32 y .. 32 y + 31
// lane l         column 32 y + l: neighbouring addresses; warp w reads rows w, w + 8, ... of the chunk
//                warp 0 adds the 8 warps' sums in order of w and writes 32 elements of partial: no atomics
template <typename T> __device__ void bias_bwd(float* partial, const T* dy, BiasGradParams p) {
    SHARED(float, sums, BIAS_ROWS * WARP);
    const uint32_t column = blockIdx.y * WARP + lane_id();
    const uint64_t first = blockIdx.x * p.rows_per_chunk, end = min(first + p.rows_per_chunk, p.rows);
    float sum = 0.0f;
    if (column < p.columns) {
        uint64_t row = first + warp_id();
        for (; row + (UNROLL - 1) * BIAS_ROWS < end; row += UNROLL * BIAS_ROWS) {
            float in[UNROLL];  // all loads are in flight at once
#pragma unroll
            for (int k = 0; k < UNROLL; k++) in[k] = load(dy[(row + k * BIAS_ROWS) * p.columns + column]);
#pragma unroll
            for (int k = 0; k < UNROLL; k++) sum += in[k];
        }
        for (; row < end; row += BIAS_ROWS) sum += load(dy[row * p.columns + column]);
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp_id() == 0 && column < p.columns) {
#pragma unroll
        for (int i = 1; i < BIAS_ROWS; i++) sum += sums[i * WARP + lane_id()];
        partial[uint64_t(blockIdx.x) * p.columns + column] = sum;
    }
}

#define KERNELS(T, S)                                                                                            \
    KERNEL(256, bias_fwd_##S, (T * y, const float* bias, BiasParams p)) {                                        \
        if (p.columns % VEC<T> == 0) bias_fwd<T, VEC<T>>(y, bias, p);                                            \
        else bias_fwd<T, 1>(y, bias, p);                                                                         \
    }                                                                                                            \
    KERNEL(256, bias_bwd_##S, (float* partial, const T* dy, BiasGradParams p)) { bias_bwd<T>(partial, dy, p); }
FOR_FLOATS(KERNELS)

// block x   columns 32 x .. 32 x + 31, all chunks
// lane l    column 32 x + l; warp w adds chunks w, w + 8, ...
//           warp 0 adds the 8 warps' sums in order of w and writes db, or adds to it
KERNEL(256, bias_fold_f32, (float* db, const float* partial, BiasGradParams p)) {
    SHARED(float, sums, BIAS_ROWS * WARP);
    const uint32_t column = blockIdx.x * WARP + lane_id();
    float sum = 0.0f;
    if (column < p.columns) {
#pragma unroll 8
        for (uint32_t i = warp_id(); i < p.chunks; i += BIAS_ROWS) sum += partial[uint64_t(i) * p.columns + column];
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp_id() == 0 && column < p.columns) {
#pragma unroll
        for (int i = 1; i < BIAS_ROWS; i++) sum += sums[i * WARP + lane_id()];
        db[column] = p.accumulate ? db[column] + sum : sum;
    }
}
