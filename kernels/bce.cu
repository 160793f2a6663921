// Binary cross-entropy from logits. x, dx [M] f32; target [M] i32; avg, dy, loss [1] f32; sums [blocks] f64. Targets
// other than 0 and 1 are ignored. A thread's four terms are added in f32, further sums are in f64. One block folds the
// blocks' sums, unless there is only one block. M is a few hundred elements an image. One pass. Deterministic.
#include "common/loss.cuh"

struct BceParams {
    uint32_t m;
    float weight;
};
static_assert(sizeof(BceParams) == 8, "mirror of src/ops/bce/cuda.rs");

constexpr int PER_THREAD = 4;

// ln(1 + e^x), written so that e^|x| never overflows.
__device__ __forceinline__ float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }

// Computed from e^-|x|, which does not overflow and loses no digits of small results.
__device__ __forceinline__ float sigmoid(float x) {
    const float e = expf(-fabsf(x));
    return x < 0.0f ? e / (1.0f + e) : 1.0f / (1.0f + e);
}

// thread t of block b   elements 4096 b + t + 0, 1024, 2048, 3072: neighbouring threads read neighbouring addresses
//                       the grid covers all elements, so there is no further loop
//                       then the block reduces its 1024 sums: no atomics, a fixed order
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
        // softplus(x) - x is softplus(-x), without cancellation. The products with 0 give NaN where the usual formula,
        // max(x, 0) - x t + ln(1 + e^-|x|), gives NaN for an infinite x.
        sum += t == 1 ? softplus(-v) + 0.0f * fmaxf(v, 0.0f) : softplus(v) + 0.0f * v;
    }
    put_loss(loss, sums, double(sum), avg, p.weight, scratch);
}

KERNEL(1024, bce_fold_f32, (float* loss, const double* sums, const float* avg, FoldParams p)) {
    SHARED(double, scratch, 32);
    fold_loss(loss, sums, avg, p.n, p.weight, scratch);
}

// thread i   element i, then i + grid threads: one thread owns each element of dx
KERNEL(256, bce_bwd_f32,
       (float* dx, const float* dy, const float* x, const int32_t* target, const float* avg, BceParams p)) {
    const float scale = dy[0] * p.weight / avg[0];
    for (int64_t i = global_thread(); i < p.m; i += global_threads()) {
        const int32_t t = target[i];
        const float v = x[i];
        // sigmoid(x) - 1 is -sigmoid(-x), without cancellation.
        dx[i] = t == 0 ? scale * sigmoid(v) : t == 1 ? -scale * sigmoid(-v) : 0.0f;
    }
}
