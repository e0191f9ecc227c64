// Numbers of e4m3 and their power of two (docs/numerics.md, rule 5), operation by operation what protocol/src/exact_math.rs and
// kernels/src/quantise.rs do.
//
// s = 2^(e - 7) where 2^e is the power of two at or below the largest magnitude, at most 2^7; q = e4m3(x / s), ties to even;
// e < -110: s = q = 0. So bf16 holds every q x s exactly.
#pragma once

#include "common.cuh"

namespace polylink {

// Nearest even, saturating, of a finite number.
__device__ __forceinline__ uint32_t to_e4m3(float x) {
    const uint32_t bits = to_bits(x), magnitude = bits & 0x7fffffffu;
    const uint32_t small = to_bits(__fadd_rn(from_bits(magnitude), 16384.0f)) - to_bits(16384.0f);
    const uint32_t rounded = (magnitude + 0x7ffffu + (magnitude >> 20 & 1u)) >> 20;
    return (bits >> 24 & 0x80u) | (magnitude < 0x3c800000u ? small : (rounded < 0x43eu ? rounded : 0x43eu) - 0x3c0u);
}

struct E4m3Scale {
    float scale;
    float inverse;
};

// Of values whose largest magnitude is this; a scale of 0 if all numbers are to be 0.
__device__ __forceinline__ E4m3Scale e4m3_scale(float largest) {
    const uint32_t exponent = to_bits(largest) >> 23;
    if (exponent < 127 - 110) {
        return {0.0f, 0.0f};
    }
    const uint32_t scale = exponent - 7 < 127 + 7 ? exponent - 7 : 127 + 7;
    return {from_bits(scale << 23), from_bits((254 - scale) << 23)};
}

// Four values, the first in the lowest byte.
__device__ __forceinline__ uint32_t e4m3_four(float4 x, const E4m3Scale& s) {
    if (s.scale == 0.0f) {
        return 0;
    }
    return to_e4m3(__fmul_rn(x.x, s.inverse)) | to_e4m3(__fmul_rn(x.y, s.inverse)) << 8 |
           to_e4m3(__fmul_rn(x.z, s.inverse)) << 16 | to_e4m3(__fmul_rn(x.w, s.inverse)) << 24;
}

}  // namespace polylink
