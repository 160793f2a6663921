// Moving average of a list of tensors: average, value f32 alike; share [1] f32. One block a chunk, one 16-byte vector a thread
// and turn. One pass. Deterministic.
#include "common/multi_tensor.cuh"

KERNEL(256, ema_f32, (const float* share, MultiTensor list)) {
    const Chunk chunk = chunk_of_block(list);
    float* __restrict__ const average = chunk_begin<float>(list, 0, chunk);
    const float* __restrict__ const value = chunk_begin<const float>(list, 1, chunk);
    const float of_value = share[0];
    over_chunk(chunk.len, [&](auto width, int32_t i) {
        constexpr int V = decltype(width)::value;
        Pack<float, V> a = load_pack<V>(average + i);
        const Pack<float, V> v = load_pack<V>(value + i);
#pragma unroll
        for (int k = 0; k < V; k++) a.v[k] += of_value * (v.v[k] - a.v[k]);
        store_pack(average + i, a);
    });
}
