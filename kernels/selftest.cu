// Tests of kernels/common for every device (tests/ops/gpu.rs compares the results): warp and block functions, tensor
// cores.
#include "common/mma.cuh"
#include "common/reduce.cuh"

// Results of warp and block sums, ballots, shuffles of 8 bytes and atomics.
// thread t of the grid   brings x[t] to every collective and writes six results to sums[6 t ..]   one owner per output
//                        one sum and one maximum over the whole grid, by atomics on counter[0] and counter[1]
KERNEL(128, selftest_collectives_i32, (int32_t* sums, int32_t* counter, const int32_t* x)) {
    SHARED(int32_t, scratch, 33);
    const int32_t v = x[global_thread()];
    int32_t total;
    const int32_t before = block_exclusive_sum(v, total, scratch);
    const int32_t all = block_reduce(v, Sum(), 0, scratch), most = block_reduce(v, Max(), INT32_MIN, scratch);
    const uint32_t odd = __ballot_sync(FULL_WARP, v & 1);
    const int64_t wide = __shfl_sync(FULL_WARP, (int64_t(1) << 40) + lane_id(), 5);
    int32_t* out = sums + global_thread() * 6;
    out[0] = before;
    out[1] = total;
    out[2] = all;
    out[3] = most;
    out[4] = __popc(odd);
    out[5] = int32_t(wide - (int64_t(1) << 40)) + 100 * __syncthreads_count(v > 0);
    atomicAdd(counter, v);
    atomicMax(counter + 1, v);
}

// D [16,8] = C + A [16,16] B [16,8] by one warp; B is stored column by column. Each lane loads and writes the four
// elements of C and D that the layout of common/mma.cuh assigns to it.
template <typename T> __device__ void mma_once(float* d, const float* c, const T* a, const T* b) {
    MmaD sum;
    for (int i = 0; i < 4; i++) sum.v[i] = c[mma_row(i) * 8 + mma_column(i)];
    mma(sum, mma_load_a(a, 16), mma_load_b(b, 16));
    for (int i = 0; i < 4; i++) d[mma_row(i) * 8 + mma_column(i)] = sum.v[i];
}
KERNEL(32, selftest_mma_f16, (float* d, const float* c, const f16* a, const f16* b)) { mma_once(d, c, a, b); }
KERNEL(32, selftest_mma_bf16, (float* d, const float* c, const bf16* a, const bf16* b)) { mma_once(d, c, a, b); }
