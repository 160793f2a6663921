// CUDA C++ for the simulated device: built-in variables, barriers, warp functions, atomics, half types, shared memory.
// With it, kernels compile unchanged as plain C++17. src/device/gpu/sim executes each GPU thread as a coroutine.
//   GPU thread   a coroutine that executes until it calls upres_sim_wait, as every barrier and warp function below does
//   block        the coroutines of one host thread; `place` tells the code which GPU thread is executing
//   grid         blocks on several host threads at once, so atomics are atomics of the host
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "half.h"

#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __noinline__
#define __restrict__
#define __align__(N) alignas(N)

struct uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace sim {

// Index of the GPU thread that is executing, and the launch's sizes. The scheduler writes it before it resumes a
// thread.
struct Place {
    uint3 thread, block;
    dim3 block_dim, grid_dim;
};
extern __thread Place place;

// The function in which a thread waits. It is an error if lanes of a warp meet in different ones.
enum Wait : uint32_t { BARRIER = 0, BARRIER_OR = 1, BARRIER_COUNT = 3, SYNCWARP = 16, SHUFFLE = 17, BALLOT = 18, MATCH = 19 };

// Suspends the thread until all threads it waits for have arrived: for a barrier, the block's threads that have not
// left; for a warp function, the lanes of `mask`. Returns the lanes' values, indexed by lane; for a barrier, element 0
// is the sum of the values.
extern "C" const uint64_t* upres_sim_wait(uint32_t kind, uint32_t mask, uint64_t value);
// Returns `bytes` bytes of the block's shared memory for the variable `tag`; every thread of the block gets the same
// address.
extern "C" void* upres_sim_shared(const void* tag, uint64_t bytes);
// Returns the dynamic shared memory that the launch asked for.
extern "C" void* upres_sim_dynamic_shared();
// Ends the launch with an error.
extern "C" void upres_sim_fault(const char* message);

// A kernel and the function that calls it. Kernels form a linked list.
struct Kernel {
    const char* name;
    uint32_t max_threads;
    uint32_t arguments;
    const uint32_t* argument_bytes;
    void (*call)(void** arguments);
    const Kernel* next;
};
extern const Kernel* kernels;

template <auto F> struct Entry;
template <typename... A, void (*F)(A...)> struct Entry<F> {
    static constexpr uint32_t bytes[] = {uint32_t(sizeof(A))..., 0};
    template <std::size_t... I> static void spread(void** a, std::index_sequence<I...>) { F(*static_cast<A*>(a[I])...); }
    static void call(void** a) { spread(a, std::index_sequence_for<A...>()); }
    static constexpr uint32_t count = sizeof...(A);
};

struct Register : Kernel {
    template <typename E> Register(const char* name, uint32_t threads, E)
        : Kernel{name, threads, E::count, E::bytes, &E::call, kernels} {
        kernels = this;
    }
};

template <typename T> uint64_t to_bits(T v) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
    uint64_t bits = 0;
    std::memcpy(&bits, &v, sizeof(T));
    return bits;
}
template <typename T> T from_bits(uint64_t bits) {
    T v;
    std::memcpy(&v, &bits, sizeof(T));
    return v;
}

inline unsigned lane() { return (place.thread.x + place.block_dim.x * (place.thread.y + place.block_dim.y * place.thread.z)) % 32; }

}  // namespace sim

#define KERNEL(THREADS, NAME, PARAMS)                                                                  \
    static void NAME PARAMS;                                                                           \
    static const ::sim::Register NAME##_registered(#NAME, THREADS, ::sim::Entry<&NAME>());             \
    static void NAME PARAMS
#define SHARED(TYPE, NAME, LEN)                \
    static const char NAME##_tag = 0;          \
    TYPE* const NAME = static_cast<TYPE*>(::sim::upres_sim_shared(&NAME##_tag, sizeof(TYPE) * (LEN)))
#define DYNAMIC_SHARED(TYPE, NAME) TYPE* const NAME = static_cast<TYPE*>(::sim::upres_sim_dynamic_shared())

#define threadIdx (::sim::place.thread)
#define blockIdx (::sim::place.block)
#define blockDim (::sim::place.block_dim)
#define gridDim (::sim::place.grid_dim)

inline void __syncthreads() { sim::upres_sim_wait(sim::BARRIER, 0, 0); }
inline int __syncthreads_or(int v) { return sim::upres_sim_wait(sim::BARRIER_OR, 0, v != 0)[0] != 0; }
inline int __syncthreads_count(int v) { return int(sim::upres_sim_wait(sim::BARRIER_COUNT, 0, v != 0)[0]); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { sim::upres_sim_wait(sim::SYNCWARP, mask, 0); }
inline void __threadfence() {}

namespace sim {
template <typename T> T shuffle(unsigned mask, T v, int source, unsigned self) {
    const uint64_t* values = upres_sim_wait(SHUFFLE, mask, to_bits(v));
    if (source < 0 || source > 31) source = int(self);
    if (!(mask >> source & 1)) {
        upres_sim_fault("a shuffle reads a lane that is not in its mask");
        return v;
    }
    return from_bits<T>(values[source]);
}
}  // namespace sim
template <typename T> T __shfl_sync(unsigned mask, T v, int source) { return sim::shuffle(mask, v, source & 31, sim::lane()); }
template <typename T> T __shfl_xor_sync(unsigned mask, T v, int d) { return sim::shuffle(mask, v, int(sim::lane()) ^ d, sim::lane()); }
template <typename T>
T __shfl_up_sync(unsigned mask, T v, unsigned d) {
    return sim::shuffle(mask, v, int(sim::lane()) - int(d), sim::lane());
}
template <typename T>
T __shfl_down_sync(unsigned mask, T v, unsigned d) {
    return sim::shuffle(mask, v, int(sim::lane() + d), sim::lane());
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    const uint64_t* values = sim::upres_sim_wait(sim::BALLOT, mask, predicate != 0);
    unsigned bits = 0;
    for (unsigned i = 0; i < 32; i++)
        if (mask >> i & 1) bits |= unsigned(values[i]) << i;
    return bits;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }
template <typename T> unsigned __match_any_sync(unsigned mask, T v) {
    const uint64_t* values = sim::upres_sim_wait(sim::MATCH, mask, sim::to_bits(v));
    const uint64_t mine = sim::to_bits(v);
    unsigned bits = 0;
    for (unsigned i = 0; i < 32; i++)
        if (mask >> i & 1) bits |= unsigned(values[i] == mine) << i;
    return bits;
}

// Atomics of the host, since blocks execute on several host threads at once.
template <typename T> T sim_fetch_update(T* p, T (*f)(T, T), T v) {
    using Word = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
    Word* word = reinterpret_cast<Word*>(p);
    Word old = __atomic_load_n(word, __ATOMIC_RELAXED), next;
    do {
        T value;
        std::memcpy(&value, &old, sizeof(T));
        value = f(value, v);
        std::memcpy(&next, &value, sizeof(T));
    } while (!__atomic_compare_exchange_n(word, &old, next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    T value;
    std::memcpy(&value, &old, sizeof(T));
    return value;
}
template <typename T> T atomicAdd(T* p, std::common_type_t<T> v) { return sim_fetch_update<T>(p, [](T a, T b) -> T { return a + b; }, v); }
template <typename T>
T atomicMax(T* p, std::common_type_t<T> v) {
    return sim_fetch_update<T>(p, [](T a, T b) -> T { return a < b ? b : a; }, v);
}
template <typename T>
T atomicMin(T* p, std::common_type_t<T> v) {
    return sim_fetch_update<T>(p, [](T a, T b) -> T { return b < a ? b : a; }, v);
}
template <typename T> T atomicOr(T* p, std::common_type_t<T> v) { return sim_fetch_update<T>(p, [](T a, T b) -> T { return a | b; }, v); }
template <typename T> T atomicAnd(T* p, std::common_type_t<T> v) { return sim_fetch_update<T>(p, [](T a, T b) -> T { return a & b; }, v); }
template <typename T> T atomicExch(T* p, std::common_type_t<T> v) { return sim_fetch_update<T>(p, [](T, T b) -> T { return b; }, v); }
template <typename T> T atomicCAS(T* p, std::common_type_t<T> compare, std::common_type_t<T> v) {
    T old = compare;
    __atomic_compare_exchange_n(p, &old, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return old;
}

template <typename T> T __ldg(const T* p) { return *p; }
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __popcll(unsigned long long v) { return __builtin_popcountll(v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline int __ffsll(long long v) { return __builtin_ffsll(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz(unsigned(v)); }
inline int __clzll(long long v) { return v == 0 ? 64 : __builtin_clzll((unsigned long long)v); }
inline unsigned __brev(unsigned v) {
    unsigned r = 0;
    for (int i = 0; i < 32; i++) r |= (v >> i & 1) << (31 - i);
    return r;
}
inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned d) { return unsigned((uint64_t(hi) << 32 | lo) << (d & 31) >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
inline unsigned __float_as_uint(float v) { return sim::from_bits<unsigned>(sim::to_bits(v)); }
inline int __float_as_int(float v) { return sim::from_bits<int>(sim::to_bits(v)); }
inline float __uint_as_float(unsigned v) { return sim::from_bits<float>(v); }
inline float __int_as_float(int v) { return sim::from_bits<float>(unsigned(v)); }
inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }
inline double rsqrt(double v) { return 1.0 / std::sqrt(v); }
template <typename T> constexpr T min(T a, T b) { return b < a ? b : a; }
template <typename T> constexpr T max(T a, T b) { return a < b ? b : a; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
