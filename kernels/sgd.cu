// SGD with momentum on a list of tensors: value, grad, velocity f32 alike; lr, grad_scale [1] f32. One block a chunk, one 16-byte
// vector a thread and turn. One pass. Deterministic.
#include "common/multi_tensor.cuh"

struct SgdParams {
    float momentum;
    uint32_t nesterov;
};
static_assert(sizeof(SgdParams) == 8, "mirror of src/ops/sgd/cuda.rs");

KERNEL(256, sgd_f32, (const float* lr, const float* grad_scale, MultiTensor list, SgdParams p)) {
    const Chunk chunk = chunk_of_block(list);
    float* __restrict__ const value = chunk_begin<float>(list, 0, chunk);
    const float* __restrict__ const grad = chunk_begin<const float>(list, 1, chunk);
    float* __restrict__ const velocity = chunk_begin<float>(list, 2, chunk);
    const float rate = lr[0], scale = grad_scale[0], decay = list.decay[chunk.tensor];
    if (scale - scale != 0.0f) return;  // not finite: the step is skipped
    over_chunk(chunk.len, [&](auto width, int32_t i) {
        constexpr int V = decltype(width)::value;
        Pack<float, V> w = load_pack<V>(value + i), v = load_pack<V>(velocity + i);
        const Pack<float, V> d = load_pack<V>(grad + i);
#pragma unroll
        for (int k = 0; k < V; k++) {
            const float g = d.v[k] * scale + decay * w.v[k];
            v.v[k] = p.momentum * v.v[k] + g;
            w.v[k] -= rate * (p.nesterov ? g + p.momentum * v.v[k] : v.v[k]);
        }
        store_pack(velocity + i, v);
        store_pack(value + i, w);
    });
}
