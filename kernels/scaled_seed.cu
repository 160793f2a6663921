// First gradient of a scaled loss: state [3], dy [1]. One thread. Deterministic.
#include "common/kernel.cuh"

KERNEL(32, scaled_seed_f32, (float* dy, const float* state, float weight)) {
    if (threadIdx.x == 0) dy[0] = weight * state[0];
}
