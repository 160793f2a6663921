// Normalises pixels to the network's input. images [B,H,W,3] u8; sizes [B,4] f32; y [B,H,W,3] T, 0 outside the image's
// size. One pass. Deterministic.
//   block (x, y)   image y
//   thread i       16-byte vectors i, i + threads along x, ... of the image's y, or channels if H W is no multiple of
//                  a vector; neighbouring threads use neighbouring addresses; a vector may cross pixels and rows
#include "common/kernel.cuh"

struct ImageNormalizeParams {
    uint32_t h, w;
    float mean[3];
    float rstd[3], rest[3];  // 1 / std rounded to f32, and the rounding error
};
static_assert(sizeof(ImageNormalizeParams) == 44, "mirror of src/ops/image_normalize/cuda.rs");

__device__ __forceinline__ float of_channel(const float* three, uint32_t c) {
    return c == 0 ? three[0] : c == 1 ? three[1] : three[2];
}

template <typename T, int V>
__device__ __forceinline__ void image_normalize(T* y, const uint8_t* images, const float* sizes, ImageNormalizeParams p) {
    const int64_t count = int64_t(p.h) * p.w * 3, image = blockIdx.y;
    const float rows = sizes[4 * image], width = sizes[4 * image + 1];
    // A negative or NaN width becomes 0.
    const uint32_t columns = width >= float(p.w) ? p.w : width >= 1.0f ? uint32_t(width) : 0;
    images += image * count;
    y += image * count;
    for (int64_t i = global_thread() * V; i < count; i += global_threads() * V) {
        const uint32_t pixel = uint32_t(i) / 3;  // the host checks that an image has fewer than 2^32 elements
        uint32_t c = uint32_t(i) - 3 * pixel, row = pixel / p.w, column = pixel - row * p.w;
        const Pack<uint8_t, V> x = load_pack<V>(images + i);
        Pack<T, V> out;
        float mean[3], rstd[3], rest[3];  // of the vector's first three elements: constant indices stay in registers
#pragma unroll
        for (int k = 0; k < 3; k++) {
            const uint32_t at = c + k < 3 ? c + k : c + k - 3;
            mean[k] = of_channel(p.mean, at);
            rstd[k] = of_channel(p.rstd, at);
            rest[k] = of_channel(p.rest, at);
        }
#pragma unroll
        for (int k = 0; k < V; k++) {
            const bool inside = float(row) < rows && column < columns;
            const float d = float(x.v[k]) - mean[k % 3];
            // d / std, like a product in f64 that is rounded once.
            out.v[k] = store<T>(inside ? fmaf(d, rstd[k % 3], d * rest[k % 3]) : 0.0f);
            if (++c == 3) {
                c = 0;
                if (++column == p.w) column = 0, row++;
            }
        }
        store_pack(y + i, out);
    }
}

#define KERNELS(T, S)                                                                                                     \
    KERNEL(256, image_normalize_##S, (T * y, const uint8_t* images, const float* sizes, ImageNormalizeParams p)) {        \
        if (p.h * p.w % VEC<T> == 0) image_normalize<T, VEC<T>>(y, images, sizes, p);                                     \
        else image_normalize<T, 1>(y, images, sizes, p);                                                                  \
    }
FOR_FLOATS(KERNELS)
