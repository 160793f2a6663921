// AdamW on a list of tensors: value, grad, mean, square f32 alike; lr, grad_scale [1], correction [2] f32. One block a chunk, one
// 16-byte vector a thread and turn. One pass. Deterministic.
#include "common/multi_tensor.cuh"

struct AdamWParams {
    float beta[2], rest[2];  // rest: 1 - beta
    float eps;
};
static_assert(sizeof(AdamWParams) == 20, "mirror of src/ops/adamw/cuda.rs");

KERNEL(256, adamw_f32,
       (const float* lr, const float* grad_scale, const float* correction, MultiTensor list, AdamWParams p)) {
    const Chunk chunk = chunk_of_block(list);
    float* __restrict__ const value = chunk_begin<float>(list, 0, chunk);
    const float* __restrict__ const grad = chunk_begin<const float>(list, 1, chunk);
    float* __restrict__ const mean = chunk_begin<float>(list, 2, chunk);
    float* __restrict__ const square = chunk_begin<float>(list, 3, chunk);
    const float scale = grad_scale[0], keep = 1.0f - lr[0] * list.decay[chunk.tensor];
    const float rate = lr[0] / correction[0], root = 1.0f / sqrtf(correction[1]);
    if (scale - scale != 0.0f) return;  // not finite: the step is skipped
    over_chunk(chunk.len, [&](auto width, int32_t i) {
        constexpr int V = decltype(width)::value;
        Pack<float, V> w = load_pack<V>(value + i), m = load_pack<V>(mean + i), s = load_pack<V>(square + i);
        const Pack<float, V> d = load_pack<V>(grad + i);
#pragma unroll
        for (int k = 0; k < V; k++) {
            const float g = d.v[k] * scale;
            m.v[k] = p.beta[0] * m.v[k] + p.rest[0] * g;
            s.v[k] = p.beta[1] * s.v[k] + p.rest[1] * g * g;
            w.v[k] = w.v[k] * keep - rate * m.v[k] / (sqrtf(s.v[k]) * root + p.eps);
        }
        store_pack(mean + i, m);
        store_pack(square + i, s);
        store_pack(value + i, w);
    });
}
