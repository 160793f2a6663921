// Kernels with known faults: what the simulated device must find (tests/ops/sim.rs). Not part of a build for GPUs.
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
