// SGD with momentum on a list of tensors: value, grad f32, velocity S (f32 or bf16), of one size; lr, grad_scale [1] f32; key [6] i32,
// null for state in f32. One block a chunk, one vector of four elements a thread and turn. One pass. A velocity in bf16 is rounded
// stochastically, after the value has been moved by the f32 one. Deterministic: a draw depends on key, tensor and element.
#include "common/multi_tensor.cuh"
#include "common/stochastic_rounding.cuh"

struct SgdParams {
    float momentum;
    uint32_t nesterov;
    uint32_t purpose;  // of the rounding
};
static_assert(sizeof(SgdParams) == 12, "mirror of src/ops/sgd/cuda.rs");

template <typename S>
__device__ __forceinline__ void sgd(const float* lr, const float* grad_scale, const int32_t* __restrict__ key, const MultiTensor& list,
                                    const SgdParams& p) {
    const Chunk chunk = chunk_of_block(list);
    float* __restrict__ const value = chunk_begin<float>(list, 0, chunk);
    const float* __restrict__ const grad = chunk_begin<const float>(list, 1, chunk);
    S* __restrict__ const velocity = chunk_begin<S>(list, 2, chunk);
    const float rate = lr[0], scale = grad_scale[0], decay = list.decay[chunk.tensor];
    if (scale - scale != 0.0f) return;  // not finite: the step is skipped
    over_chunk(chunk.len, [&](auto width, int32_t i) {
        constexpr int V = decltype(width)::value;
        Pack<float, V> w = load_pack<V>(value + i);
        Pack<S, V> v = load_pack<V>(velocity + i);
        const Pack<float, V> d = load_pack<V>(grad + i);
        const Random<V> random = random_of<S, V>(key, list.first_tensor + chunk.tensor, p.purpose, chunk.first + i);
#pragma unroll
        for (int k = 0; k < V; k++) {
            const float g = d.v[k] * scale + decay * w.v[k];
            const float new_velocity = p.momentum * load(v.v[k]) + g;
            w.v[k] -= rate * (p.nesterov ? g + p.momentum * new_velocity : new_velocity);
            v.v[k] = store_state<S>(new_velocity, random.v[k]);
        }
        store_pack(velocity + i, v);
        store_pack(value + i, w);
    });
}

#define KERNELS(S, NAME)                                                                                                     \
    KERNEL(256, sgd_##NAME, (const float* lr, const float* grad_scale, const int32_t* key, MultiTensor list, SgdParams p)) { \
        sgd<S>(lr, grad_scale, key, list, p);                                                                                \
    }
KERNELS(float, f32)
KERNELS(bf16, bf16)
