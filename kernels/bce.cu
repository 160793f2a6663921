// Binary cross-entropy from logits. x, dx [M] f32; target [M] i32; avg, dy, loss [1] f32; sums [blocks] f64. Forward: four
// elements a thread in f32, from the block's sum on in f64; the blocks' sums are folded by one block, unless there is only one.
// Backward: one thread an element (M is some hundreds an image). rpn_targets: one thread a sample. One pass. Deterministic.
#include "common/loss.cuh"

struct BceParams {
    uint32_t m;
    float weight;
};
static_assert(sizeof(BceParams) == 8, "mirror of src/ops/bce/cuda.rs");

constexpr int PER_THREAD = 4;

// ln(1 + e^x), written so that e^|x| never overflows.
__device__ __forceinline__ float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }

// By e^-|x|, which neither overflows nor loses the small side.
__device__ __forceinline__ float sigmoid(float x) {
    const float e = expf(-fabsf(x));
    return x < 0.0f ? e / (1.0f + e) : 1.0f / (1.0f + e);
}

KERNEL(1024, bce_fwd_f32, (float* loss, double* sums, const float* x, const int32_t* target, const float* avg, BceParams p)) {
    SHARED(double, scratch, 32);
    const int64_t first = int64_t(blockIdx.x) * blockDim.x * PER_THREAD + threadIdx.x;
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < PER_THREAD; j++) {
        const int64_t i = first + int64_t(j) * blockDim.x;
        const int32_t t = i < p.m ? target[i] : -1;
        if (t != 0 && t != 1) continue;
        const float v = x[i];
        // softplus(x) - x is softplus(-x), without the cancellation; the products with 0 make a NaN where an infinity less
        // itself would.
        sum += t == 1 ? softplus(-v) + 0.0f * fmaxf(v, 0.0f) : softplus(v) + 0.0f * v;
    }
    put_loss(loss, sums, double(sum), avg, p.weight, scratch);
}

KERNEL(1024, bce_fold_f32, (float* loss, const double* sums, const float* avg, FoldParams p)) {
    SHARED(double, scratch, 32);
    fold_loss(loss, sums, avg, p.n, p.weight, scratch);
}

KERNEL(256, bce_bwd_f32,
       (float* dx, const float* dy, const float* x, const int32_t* target, const float* avg, BceParams p)) {
    const float scale = dy[0] * p.weight / avg[0];
    for (int64_t i = global_thread(); i < p.m; i += global_threads()) {
        const int32_t t = target[i];
        const float v = x[i];
        // sigmoid(x) - 1 without the cancellation is -sigmoid(-x).
        dx[i] = t == 0 ? scale * sigmoid(v) : t == 1 ? -scale * sigmoid(-v) : 0.0f;
    }
}
