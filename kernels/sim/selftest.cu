// Kernels with known faults: what the simulated device must find (tests/sim.rs). Not part of a build for GPUs.
#include "common/reduce.cuh"

// Each block reverses its 64 elements through shared memory.
template <bool BARRIER> __device__ void reverse(float* y, const float* x) {
    SHARED(float, tile, 64);
    tile[threadIdx.x] = x[global_thread()];
    if (BARRIER) __syncthreads();
    y[global_thread()] = tile[63 - threadIdx.x];
}
KERNEL(64, selftest_reverse_f32, (float* y, const float* x)) { reverse<true>(y, x); }
KERNEL(64, selftest_missing_barrier_f32, (float* y, const float* x)) { reverse<false>(y, x); }

KERNEL(64, selftest_write_at_f32, (float* y, int64_t i)) {
    if (global_thread() == 0) y[i] = 1.0f;
}

KERNEL(64, selftest_shared_overrun_f32, (float* y)) {
    SHARED(float, tile, 10);
    if (threadIdx.x == 0) tile[10] = 1.0f;
    y[0] = 0.0f;
}

// Lanes meet in different warp functions.
KERNEL(64, selftest_divergent_f32, (float* y)) {
    y[threadIdx.x] = lane_id() < 16 ? __shfl_xor_sync(FULL_WARP, 1.0f, 1) : float(__ballot_sync(FULL_WARP, 1));
}

// Half of the lanes leave, the others wait for them.
KERNEL(64, selftest_lane_left_f32, (float* y)) {
    if (lane_id() < 16) return;
    y[threadIdx.x] = __shfl_xor_sync(FULL_WARP, 1.0f, 1);
}

// Threads wait for each other in a barrier and in a warp function.
KERNEL(64, selftest_deadlock_f32, (float* y)) {
    if (warp_id() == 0 && lane_id() == 0) __syncthreads();
    y[threadIdx.x] = __shfl_xor_sync(FULL_WARP, 1.0f, 1);
}

// Warp and block sums, ballots, shuffles of 8 bytes, atomics: what they should be.
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
