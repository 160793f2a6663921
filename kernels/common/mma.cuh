// Tensor-core products by one warp: D [16,8] f32 += A [16,16] x B [16,8], with A and B in f16 or bf16.
//
// The layout is that of PTX's mma.m16n8k16 (row-major A, column-major B). With g = lane / 4 and t = lane % 4, a
// lane holds
//   A: words 0..3, two elements each: rows g, g + 8, g, g + 8; columns 2t and 2t + 1 in words 0 and 1,
//      2t + 8 and 2t + 9 in words 2 and 3
//   B: words 0, 1: rows 2t and 2t + 1, then 2t + 8 and 2t + 9, of column g
//   D: rows g, g, g + 8, g + 8, columns 2t, 2t + 1, 2t, 2t + 1
// Without such an instruction (the simulated device; bf16 before sm_80; f16 before sm_75), shuffles and fmaf compute
// the same product in ascending order of the inner index. The hardware sums in an order of its own.
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

// Converts element `i` (0 or 1) of a word to f32.
template <typename T> __device__ __forceinline__ float unpack2(uint32_t word, int i) {
    const uint16_t bits = uint16_t(word >> (16 * i));
    T v;
    memcpy(&v, &bits, 2);
    return load(v);
}

// Loads two neighbouring elements; the address is a multiple of 4 bytes.
template <typename T> __device__ __forceinline__ uint32_t load_word(const T* p) {
    const Pack<T, 2> v = load_pack<2>(p);
    return pack2(v.v[0], v.v[1]);
}

// Load A from row-major storage and B from column-major storage. `ld`, an even number, is the distance in elements
// between rows of A or columns of B.
template <typename T> __device__ __forceinline__ MmaA<T> mma_load_a(const T* a, int ld) {
    const int g = lane_id() / 4, t = lane_id() % 4;
    MmaA<T> out;
#pragma unroll
    for (int w = 0; w < 4; w++) {
        out.word[w] = load_word(a + (g + w % 2 * 8) * ld + 2 * t + w / 2 * 8);
    }
    return out;
}
template <typename T> __device__ __forceinline__ MmaB<T> mma_load_b(const T* b, int ld) {
    const int g = lane_id() / 4, t = lane_id() % 4;
    MmaB<T> out;
#pragma unroll
    for (int w = 0; w < 2; w++) out.word[w] = load_word(b + g * ld + 2 * t + w * 8);
    return out;
}
// Loads B from row-major storage in shared memory, whose rows begin at multiples of 16 bytes. All lanes call it: lane l
// passes the address of row l % 16, and ldmatrix transposes, so that two elements of a column share a word.
template <typename T> __device__ __forceinline__ MmaB<T> mma_load_b_rows(const T* b, int ld) {
    MmaB<T> out;
#if !defined(UPRES_SIM) && __CUDA_ARCH__ >= 750
    const uint32_t row = uint32_t(__cvta_generic_to_shared(b + lane_id() % 16 * ld));
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                 : "=r"(out.word[0]), "=r"(out.word[1]) : "r"(row) : "memory");
#else
    const int g = lane_id() / 4, t = lane_id() % 4;
#pragma unroll
    for (int w = 0; w < 2; w++) {
        const T* at = b + (2 * t + w * 8) * ld + g;
        out.word[w] = pack2(at[0], at[ld]);
    }
#endif
    return out;
}
// Makes an A of two results D: `low` becomes columns 0..7 and `high` columns 8..15. Each lane already holds the
// elements that A's layout assigns to it, so no data move between lanes.
template <typename T> __device__ __forceinline__ MmaA<T> mma_a_of(const MmaD& low, const MmaD& high) {
    MmaA<T> out;
    out.word[0] = pack2(store<T>(low.v[0]), store<T>(low.v[1]));
    out.word[1] = pack2(store<T>(low.v[2]), store<T>(low.v[3]));
    out.word[2] = pack2(store<T>(high.v[0]), store<T>(high.v[1]));
    out.word[3] = pack2(store<T>(high.v[2]), store<T>(high.v[3]));
    return out;
}

// Row and column, in D, of the element that this lane holds as v[i].
__device__ __forceinline__ int mma_row(int i) { return lane_id() / 4 + i / 2 * 8; }
__device__ __forceinline__ int mma_column(int i) { return lane_id() % 4 * 2 + i % 2; }

// The product by shuffles: for each pair of inner indices, a lane fetches the words of A's two rows and B's two columns
// that its four elements of D need. All lanes call it.
template <typename T> __device__ __forceinline__ void mma_by_shuffles(MmaD& d, const MmaA<T>& a, const MmaB<T>& b) {
    const int row = lane_id() / 4 * 4, column = lane_id() % 4 * 8;
#pragma unroll 1
    for (int k = 0; k < 16; k += 2) {
        const int half = k / 8, t = k % 8 / 2;  // lanes with lane % 4 == t hold inner indices k and k + 1
        uint32_t wa[2], wb[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            wa[i] = __shfl_sync(FULL_WARP, half ? a.word[i + 2] : a.word[i], row + t);
            wb[i] = __shfl_sync(FULL_WARP, half ? b.word[1] : b.word[0], column + 4 * i + t);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            d.v[i] = fmaf(unpack2<T>(wa[i / 2], 0), unpack2<T>(wb[i % 2], 0), d.v[i]);
            d.v[i] = fmaf(unpack2<T>(wa[i / 2], 1), unpack2<T>(wb[i % 2], 1), d.v[i]);
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
    // Turing's instruction has half the inner dimension, 8: two of them do the work.
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
