// The 16-bit floats of the simulated device: storage and conversions. They round to the nearest value, ties to even.
#pragma once

#include <cstdint>
#include <cstring>

struct __half { uint16_t bits; };
struct __nv_bfloat16 { uint16_t bits; };

namespace sim {
inline uint32_t float_bits(float v) {
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    return bits;
}
inline float bits_float(uint32_t bits) {
    float v;
    std::memcpy(&v, &bits, 4);
    return v;
}
}  // namespace sim

inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short bits) { return {bits}; }
inline float __bfloat162float(__nv_bfloat16 v) { return sim::bits_float(uint32_t(v.bits) << 16); }
inline __nv_bfloat16 __float2bfloat16_rn(float v) {
    const uint32_t bits = sim::float_bits(v);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {0x7fff};  // NaN, as the device gives it
    return {uint16_t((bits + 0x7fffu + (bits >> 16 & 1)) >> 16)};
}

inline float __half2float(__half v) {
    const uint32_t sign = uint32_t(v.bits & 0x8000u) << 16, exponent = v.bits >> 10 & 31, fraction = v.bits & 1023u;
    if (exponent == 31) return sim::bits_float(sign | 0x7f800000u | fraction << 13);
    if (exponent == 0) {
        const float small = float(fraction) * (1.0f / 16777216.0f);  // 2^-24
        return sign ? -small : small;
    }
    return sim::bits_float(sign | (exponent + 112) << 23 | fraction << 13);
}
inline __half __float2half_rn(float v) {
    const uint32_t bits = sim::float_bits(v), magnitude = bits & 0x7fffffffu;
    const uint16_t sign = uint16_t(bits >> 16 & 0x8000u);
    if (magnitude > 0x7f800000u) return {0x7fff};  // NaN, as the device gives it
    if (magnitude >= 0x477ff000u) return {uint16_t(sign | 0x7c00u)};  // values from 65520 on round to infinity
    if (magnitude < 0x38800000u) {  // below 2^-14 f16 has multiples of 2^-24: adding 0.5 rounds to one
        const float shifted = sim::bits_float(magnitude) + 0.5f;
        return {uint16_t(sign | (sim::float_bits(shifted) - 0x3f000000u))};
    }
    const uint32_t odd = magnitude >> 13 & 1;
    return {uint16_t(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13))};
}
