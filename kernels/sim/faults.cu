// Kernels with known faults, which the simulated device must find (tests/ops/sim.rs). Not part of a build for GPUs.
// Blocks have 64 threads.
#include "common/reduce.cuh"

// Each block reverses its 64 elements through shared memory: thread t stores element t and reads element 63 - t, which
// for BARRIER = false another warp may not have stored yet.
template <bool BARRIER> __device__ void reverse(float* y, const float* x) {
    SHARED(float, tile, 64);
    tile[threadIdx.x] = x[global_thread()];
    if (BARRIER) __syncthreads();
    y[global_thread()] = tile[63 - threadIdx.x];
}
KERNEL(64, selftest_reverse_f32, (float* y, const float* x)) { reverse<true>(y, x); }
KERNEL(64, selftest_missing_barrier_f32, (float* y, const float* x)) { reverse<false>(y, x); }

// Writes at an index that may lie outside the buffer.
KERNEL(64, selftest_write_at_f32, (float* y, int64_t i)) {
    if (global_thread() == 0) y[i] = 1.0f;
}

// Writes past the end of a shared variable.
KERNEL(64, selftest_shared_overrun_f32, (float* y)) {
    SHARED(float, tile, 10);
    if (threadIdx.x == 0) tile[10] = 1.0f;
    y[0] = 0.0f;
}

// Lanes of one warp wait in different warp functions.
KERNEL(64, selftest_divergent_f32, (float* y)) {
    y[threadIdx.x] = lane_id() < 16 ? __shfl_xor_sync(FULL_WARP, 1.0f, 1) : float(__ballot_sync(FULL_WARP, 1));
}

// Half of the lanes leave, and the others name them in their mask.
KERNEL(64, selftest_lane_left_f32, (float* y)) {
    if (lane_id() < 16) return;
    y[threadIdx.x] = __shfl_xor_sync(FULL_WARP, 1.0f, 1);
}

// Lane 0 of warp 0 waits at the block's barrier while the other lanes of its warp wait for it in a shuffle.
KERNEL(64, selftest_deadlock_f32, (float* y)) {
    if (warp_id() == 0 && lane_id() == 0) __syncthreads();
    y[threadIdx.x] = __shfl_xor_sync(FULL_WARP, 1.0f, 1);
}
