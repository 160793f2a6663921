// Norm of a list of tensors, f32; norm, scale [1] f32; squares [chunks] f64. One block a chunk: squares are summed in f32 over a
// 16-byte vector (in f64 where they leave its range), from there on in f64; one block folds the chunks. One pass over the
// gradients. Deterministic.
#include "common/multi_tensor.cuh"
#include "common/reduce.cuh"

template <int V> __device__ __forceinline__ double sum_of_squares(Pack<float, V> g) {
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < V; k++) sum = fmaf(g.v[k], g.v[k], sum);
    if (sum > 1e-28f && sum < 1e38f) return double(sum);  // what was lost below 2^-149 is no digit of it; NaN goes on
    double wide = 0.0;
#pragma unroll
    for (int k = 0; k < V; k++) wide += double(g.v[k]) * double(g.v[k]);
    return wide;
}

KERNEL(256, grad_norm_chunks_f32, (double* squares, MultiTensor list)) {
    SHARED(double, scratch, 32);
    const Chunk chunk = chunk_of_block(list);
    const float* __restrict__ const grad = chunk_begin<const float>(list, 0, chunk);
    double mine = 0.0;
    over_chunk(chunk.len, [&](auto width, int32_t i) {
        constexpr int V = decltype(width)::value;
        mine += sum_of_squares<V>(load_pack<V>(grad + i));
    });
    const double sum = block_reduce(mine, Sum(), 0.0, scratch);
    if (threadIdx.x == 0) squares[int64_t(list.first_chunk) + blockIdx.x] = sum;
}

KERNEL(1024, grad_norm_f32, (float* norm, const double* squares, int64_t n)) {
    SHARED(double, scratch, 32);
    double mine = 0.0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) mine += squares[i];
    const double sum = block_reduce(mine, Sum(), 0.0, scratch);
    if (threadIdx.x == 0) norm[0] = float(sqrt(sum));
}
