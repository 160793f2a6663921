// Boxes [x0 y0 x1 y1]: decoding, image sizes and IoU. The order of operations is mmdetection's, as on the CPU. NaN
// stays NaN.
#pragma once

#include "kernel.cuh"

// Row `i` of a tensor of four floats a row.
__device__ __forceinline__ float4 load_box(const float* boxes, int64_t i) { return reinterpret_cast<const float4*>(boxes)[i]; }
__device__ __forceinline__ void store_box(float* boxes, int64_t i, float4 box) { reinterpret_cast<float4*>(boxes)[i] = box; }

__device__ __forceinline__ float clamp(float v, float lo, float hi) { return v < lo ? lo : v > hi ? hi : v; }

// (width, height) of image `b`, from sizes [B,4] with rows (img_h, img_w, pad_h, pad_w).
__device__ __forceinline__ float2 image_size(const float* sizes, int64_t b) {
    const float4 s = load_box(sizes, b);
    return make_float2(s.y, s.x);
}

// One axis of a decoded box: moves and scales the interval lo .. hi and clamps its ends to [0, limit].
__device__ __forceinline__ float2 decode_axis(float lo, float hi, float shift, float log_scale, float limit) {
    constexpr float LOG_SCALE_MAX = 4.1351666f;  // |ln(16/1000)|: a side is at most 62.5 times the anchor's
    const float side = hi - lo;
    const float centre = (lo + hi) * 0.5f + side * shift;
    const float half = side * expf(clamp(log_scale, -LOG_SCALE_MAX, LOG_SCALE_MAX)) * 0.5f;
    return make_float2(clamp(centre - half, 0.0f, limit), clamp(centre + half, 0.0f, limit));
}

// Decodes the deltas `d`, times `stds`, for anchor `p`. The box is clipped to [0, size.x] x [0, size.y].
__device__ __forceinline__ float4 decode(float4 p, float4 d, float4 stds, float2 size) {
    const float2 x = decode_axis(p.x, p.z, d.x * stds.x, d.z * stds.z, size.x);
    const float2 y = decode_axis(p.y, p.w, d.y * stds.y, d.w * stds.w, size.y);
    return make_float4(x.x, y.x, x.y, y.y);
}

__device__ __forceinline__ float box_area(float4 b) { return (b.z - b.x) * (b.w - b.y); }

// IoU of box `b` and ground truth `g`, whose areas the caller gives. Sides have no "+1"; the union counts as at least
// 1e-6.
__device__ __forceinline__ float box_iou(float4 b, float area, float4 g, float g_area) {
    const float left = b.x > g.x ? b.x : g.x, top = b.y > g.y ? b.y : g.y;
    const float right = b.z < g.z ? b.z : g.z, bottom = b.w < g.w ? b.w : g.w;
    const float w = right - left, h = bottom - top;
    const float inter = (w > 0.0f ? w : 0.0f) * (h > 0.0f ? h : 0.0f);
    const float both = g_area + area - inter;
    return inter / (both < 1e-6f ? 1e-6f : both);
}

// Shift and log scale from p0, p1 to g0, g1.
__device__ __forceinline__ float2 encode_axis(float p0, float p1, float g0, float g1) {
    const float p_side = p1 - p0, g_side = g1 - g0;
    return make_float2(((g0 + g1) * 0.5f - (p0 + p1) * 0.5f) / p_side, logf(g_side / p_side));
}

__device__ __forceinline__ float4 encode(float4 box, float4 truth, const float* stds) {
    const float2 along_x = encode_axis(box.x, box.z, truth.x, truth.z), along_y = encode_axis(box.y, box.w, truth.y, truth.w);
    return make_float4(along_x.x / stds[0], along_y.x / stds[1], along_x.y / stds[2], along_y.y / stds[3]);
}
