// Factor that clips gradients: scale, norm [1]. One thread. Deterministic.
#include "common/kernel.cuh"

KERNEL(32, clip_scale_f32, (float* scale, const float* norm, float max_norm)) {
    if (threadIdx.x != 0) return;
    const float s = max_norm / (norm[0] + 1e-6f);
    scale[0] = norm[0] - norm[0] != 0.0f ? norm[0] - norm[0] : fminf(s, 1.0f);  // not finite: NaN
}
