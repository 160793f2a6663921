// Dynamic loss scale: state [3] (scale, good steps in a row, steps applied), norm, grad_scale, dy [1], correction [2] f32. One
// thread; each number is read and written once. Deterministic.
#include "common/kernel.cuh"

struct LossScaleParams {
    double beta[2];
    float growth, backoff, interval, min, max, max_norm;
};
static_assert(sizeof(LossScaleParams) == 40, "mirror of src/ops/loss_scale/cuda.rs");

KERNEL(32, loss_scale_f32, (float* grad_scale, float* norm, float* state, float* correction, LossScaleParams p)) {
    if (threadIdx.x != 0) return;
    const float scaled = norm[0], scale = state[0], good = state[1] + 1.0f, applied = state[2];
    for (int i = 0; i < 2; i++) correction[i] = float(1.0 - pow(p.beta[i], double(applied) + 1.0));
    if (scaled - scaled != 0.0f) {
        grad_scale[0] = scaled - scaled;  // NaN: the step is skipped
        state[0] = fmaxf(scale * p.backoff, p.min);
        state[1] = 0.0f;
        return;
    }
    const float unscaled = fminf(scaled / scale, __uint_as_float(0x7f7fffffu));  // f32's largest
    const bool grow = good >= p.interval;
    grad_scale[0] = fminf(p.max_norm / (unscaled + 1e-6f), 1.0f) / scale;
    norm[0] = unscaled;
    state[0] = grow ? fminf(scale * p.growth, p.max) : scale;
    state[1] = grow ? 0.0f : good;
    state[2] = applied + 1.0f;
}
