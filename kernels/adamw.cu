// AdamW on a list of tensors: value, grad f32, mean, square S (f32 or bf16), of one size; lr, grad_scale [1], correction [2] f32;
// key [6] i32, null for state in f32. One block a chunk, one vector of four elements a thread and turn. One pass. State in bf16 is
// rounded stochastically, after the value has been moved by the f32 means. Deterministic: a draw depends on key, tensor and element.
#include "common/multi_tensor.cuh"
#include "common/stochastic_rounding.cuh"

struct AdamWParams {
    float beta[2], rest[2];  // rest: 1 - beta
    float eps;
    uint32_t purpose;        // of the rounding
};
static_assert(sizeof(AdamWParams) == 24, "mirror of src/ops/adamw/cuda.rs");

template <typename S>
__device__ __forceinline__ void adamw(const float* lr, const float* grad_scale, const float* correction, const int32_t* __restrict__ key,
                                      const MultiTensor& list, const AdamWParams& p) {
    const Chunk chunk = chunk_of_block(list);
    float* __restrict__ const value = chunk_begin<float>(list, 0, chunk);
    const float* __restrict__ const grad = chunk_begin<const float>(list, 1, chunk);
    S* __restrict__ const mean = chunk_begin<S>(list, 2, chunk);
    S* __restrict__ const square = chunk_begin<S>(list, 3, chunk);
    const float scale = grad_scale[0], keep = 1.0f - lr[0] * list.decay[chunk.tensor];
    const float rate = lr[0] / correction[0], root = 1.0f / sqrtf(correction[1]);
    if (scale - scale != 0.0f) return;  // not finite: the step is skipped
    over_chunk(chunk.len, [&](auto width, int32_t i) {
        constexpr int V = decltype(width)::value;
        Pack<float, V> w = load_pack<V>(value + i);
        Pack<S, V> m = load_pack<V>(mean + i), s = load_pack<V>(square + i);
        const Pack<float, V> d = load_pack<V>(grad + i);
        const Random<V> random = random_of<S, V>(key, list.first_tensor + chunk.tensor, p.purpose, chunk.first + i);
#pragma unroll
        for (int k = 0; k < V; k++) {
            const float g = d.v[k] * scale;
            const float new_mean = p.beta[0] * load(m.v[k]) + p.rest[0] * g;
            const float new_square = p.beta[1] * load(s.v[k]) + p.rest[1] * g * g;
            w.v[k] = w.v[k] * keep - rate * new_mean / (sqrtf(new_square) * root + p.eps);
            m.v[k] = store_state<S>(new_mean, random.v[k]);
            s.v[k] = store_state<S>(new_square, random.v[k] >> 16);
        }
        store_pack(mean + i, m);
        store_pack(square + i, s);
        store_pack(value + i, w);
    });
}

#define KERNELS(S, NAME)                                                                                            \
    KERNEL(256, adamw_##NAME,                                                                                       \
           (const float* lr, const float* grad_scale, const float* correction, const int32_t* key, MultiTensor list, \
            AdamWParams p)) {                                                                                       \
        adamw<S>(lr, grad_scale, correction, key, list, p);                                                         \
    }
KERNELS(float, f32)
KERNELS(bf16, bf16)
