// Included by every kernel: the macro for entry points, shared memory, element types and vector access. The same source
// is compiled by nvcc and, with UPRES_SIM defined, as plain C++ for the simulated device (kernels/sim/device.h).
#pragma once

#include <cstdint>

#ifdef UPRES_SIM
#include "../sim/device.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>

// An entry point `extern "C" void NAME PARAMS` for blocks of at most THREADS threads. The 1 in __launch_bounds__ asks
// for room for only one block on a multiprocessor; without it ptxas spills registers to fit more blocks.
#define KERNEL(THREADS, NAME, PARAMS) extern "C" __global__ void __launch_bounds__(THREADS, 1) NAME PARAMS

// LEN elements of shared memory, not initialised.
#define SHARED(TYPE, NAME, LEN) __shared__ TYPE NAME[LEN]

// Shared memory of the size that the launch asks for, not initialised; at most one such variable per kernel.
#define DYNAMIC_SHARED(TYPE, NAME)                                  \
    extern __shared__ __align__(16) unsigned char NAME##_bytes[];   \
    TYPE* const NAME = reinterpret_cast<TYPE*>(NAME##_bytes)
#endif

using f16 = __half;
using bf16 = __nv_bfloat16;

constexpr int WARP = 32;
constexpr uint32_t FULL_WARP = 0xffffffffu;

// Expands X(type, name suffix) for each storage type of activations.
#define FOR_FLOATS(X) X(float, f32) X(f16, f16) X(bf16, bf16)

// Converts a stored value to f32.
__device__ __forceinline__ float load(const float& v) { return v; }
__device__ __forceinline__ float load(const f16& v) { return __half2float(v); }
__device__ __forceinline__ float load(const bf16& v) { return __bfloat162float(v); }

// Converts f32 to the storage type, rounding to the nearest value.
template <typename T> __device__ __forceinline__ T store(float v);
template <> __device__ __forceinline__ float store<float>(float v) { return v; }
template <> __device__ __forceinline__ f16 store<f16>(float v) { return __float2half_rn(v); }
template <> __device__ __forceinline__ bf16 store<bf16>(float v) { return __float2bfloat16_rn(v); }

// Number of elements of T in 16 bytes.
template <typename T> constexpr int VEC = 16 / int(sizeof(T));

// V elements of T that are read or written by one access; the address must be a multiple of their size. Tensors begin
// at a multiple of 64 bytes.
template <typename T, int V> struct alignas(V * sizeof(T)) Pack {
    T v[V];
};
template <typename T> using Vec = Pack<T, VEC<T>>;

template <int V, typename T> __device__ __forceinline__ Pack<T, V> load_pack(const T* p) {
    return *reinterpret_cast<const Pack<T, V>*>(p);
}
template <typename T, int V> __device__ __forceinline__ void store_pack(T* p, const Pack<T, V>& v) {
    *reinterpret_cast<Pack<T, V>*>(p) = v;
}
template <typename T> __device__ __forceinline__ Vec<T> load_vec(const T* p) { return load_pack<VEC<T>>(p); }
template <typename T> __device__ __forceinline__ void store_vec(T* p, const Vec<T>& v) { store_pack(p, v); }

// This thread's index in the grid, and the number of threads in the grid, along x.
__device__ __forceinline__ int64_t global_thread() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ __forceinline__ int64_t global_threads() { return int64_t(gridDim.x) * blockDim.x; }
__device__ __forceinline__ int lane_id() { return int(threadIdx.x) % WARP; }
__device__ __forceinline__ int warp_id() { return int(threadIdx.x) / WARP; }
