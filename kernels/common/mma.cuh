// Tensor-core products of one warp: D [16,8] f32 += A [16,16] x B [16,8], A and B in f16 or bf16.
//
// The layout is that of PTX's mma.m16n8k16 (row-major A, column-major B). With g = lane / 4 and t = lane % 4, a lane holds
//   A: words 0..3, two elements each: rows g, g + 8, g, g + 8; columns 2t and 2t + 1 in words 0 and 1, 2t + 8 and 2t + 9 in 2 and 3
//   B: words 0, 1: rows 2t and 2t + 1, then 2t + 8 and 2t + 9, of column g
//   D: rows g, g, g + 8, g + 8, columns 2t, 2t + 1, 2t, 2t + 1
// Where there is no such instruction (the simulated device; bf16 before sm_80) shuffles and fmaf do the same, in ascending order of the inner
// index; the hardware's order of the sum is its own.
#pragma once

#include "kernel.cuh"

template <typename T> struct MmaA { uint32_t word[4]; };
template <typename T> struct MmaB { uint32_t word[2]; };
struct MmaD { float v[4]; };

__device__ __forceinline__ uint32_t pack2(f16 low, f16 high) {
    uint16_t a, b;
    memcpy(&a, &low, 2), memcpy(&b, &high, 2);
    return uint32_t(a) | uint32_t(b) << 16;
}
__device__ __forceinline__ uint32_t pack2(bf16 low, bf16 high) {
    uint16_t a, b;
    memcpy(&a, &low, 2), memcpy(&b, &high, 2);
    return uint32_t(a) | uint32_t(b) << 16;
}

// Element `i` (0 or 1) of a word, as f32.
template <typename T> __device__ __forceinline__ float unpack2(uint32_t word, int i) {
    const uint16_t bits = uint16_t(word >> (16 * i));
    T v;
    memcpy(&v, &bits, 2);
    return load(v);
}

// A from row-major storage, B from column-major storage (`ld` elements between rows of A, columns of B).
template <typename T> __device__ __forceinline__ MmaA<T> mma_load_a(const T* a, int ld) {
    const int g = lane_id() / 4, t = lane_id() % 4;
    MmaA<T> out;
#pragma unroll
    for (int w = 0; w < 4; w++) {
        const T* at = a + (g + w % 2 * 8) * ld + 2 * t + w / 2 * 8;
        out.word[w] = pack2(at[0], at[1]);
    }
    return out;
}
template <typename T> __device__ __forceinline__ MmaB<T> mma_load_b(const T* b, int ld) {
    const int g = lane_id() / 4, t = lane_id() % 4;
    MmaB<T> out;
#pragma unroll
    for (int w = 0; w < 2; w++) {
        const T* at = b + g * ld + 2 * t + w * 8;
        out.word[w] = pack2(at[0], at[1]);
    }
    return out;
}

// Row and column of element `i` of D that this lane holds.
__device__ __forceinline__ int mma_row(int i) { return lane_id() / 4 + i / 2 * 8; }
__device__ __forceinline__ int mma_column(int i) { return lane_id() % 4 * 2 + i % 2; }

// By shuffles. All lanes call it.
template <typename T> __device__ __forceinline__ void mma_by_shuffles(MmaD& d, const MmaA<T>& a, const MmaB<T>& b) {
#pragma unroll
    for (int k = 0; k < 16; k++) {
        const int half = k / 8, t = k % 8 / 2;  // who holds the inner index k: lanes with lane % 4 == t
#pragma unroll
        for (int i = 0; i < 4; i++) {
            // One shuffle serves all lanes: each says which of its words the readers want.
            const uint32_t wa = __shfl_sync(FULL_WARP, a.word[i / 2 + 2 * half], lane_id() / 4 * 4 + t);
            const uint32_t wb = __shfl_sync(FULL_WARP, b.word[half], mma_column(i) * 4 + t);
            d.v[i] = fmaf(unpack2<T>(wa, k % 2), unpack2<T>(wb, k % 2), d.v[i]);
        }
    }
}

__device__ __forceinline__ void mma(MmaD& d, const MmaA<f16>& a, const MmaB<f16>& b) {
#ifdef UPRES_SIM
    mma_by_shuffles(d, a, b);
#elif __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d.v[0]), "+f"(d.v[1]), "+f"(d.v[2]), "+f"(d.v[3])
        : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b.word[0]), "r"(b.word[1]));
#elif __CUDA_ARCH__ >= 750
    // Turing's instruction is half as deep.
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(d.v[0]), "+f"(d.v[1]), "+f"(d.v[2]), "+f"(d.v[3]) : "r"(a.word[0]), "r"(a.word[1]), "r"(b.word[0]));
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
        : "+f"(d.v[0]), "+f"(d.v[1]), "+f"(d.v[2]), "+f"(d.v[3]) : "r"(a.word[2]), "r"(a.word[3]), "r"(b.word[1]));
#else
    mma_by_shuffles(d, a, b);
#endif
}

__device__ __forceinline__ void mma(MmaD& d, const MmaA<bf16>& a, const MmaB<bf16>& b) {
#if !defined(UPRES_SIM) && __CUDA_ARCH__ >= 800
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d.v[0]), "+f"(d.v[1]), "+f"(d.v[2]), "+f"(d.v[3])
        : "r"(a.word[0]), "r"(a.word[1]), "r"(a.word[2]), "r"(a.word[3]), "r"(b.word[0]), "r"(b.word[1]));
#else
    mma_by_shuffles(d, a, b);
#endif
}
