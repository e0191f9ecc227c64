// Activations as integers (docs/numerics.md, rule 3): per block of 32, or per key or value of a head, one scale.
//
// s = largest magnitude ÷ 127, q = round(x ÷ s), ties to even; s subnormal or 0: s = q = 0. Inputs are finite.
#pragma once

#include "common.cuh"

namespace polylink {

constexpr uint32_t QUANT_BLOCK = 32;  // values per scale

// RowForm::Q8: integers i8 [rows][q8_pitch(width)], scales f32 [rows][q8_pitch(width) / 32]. The pitch is a multiple of 256
// values, so that 256 integers and their eight scales of a row are whole 16-byte pieces for the products, which read them by
// groups of 256; what lies beyond the width is never used and need not be written (it must be memory, no more). Products
// find the sums of a block's integers by themselves.
__host__ __device__ __forceinline__ uint32_t q8_pitch(uint32_t width) { return (width + 255u) / 256u * 256u; }

// Nearest integer, ties to even, of |x| < 2²²: the addition rounds.
__device__ __forceinline__ int round_to_integer(float x) {
    const float shift = 12582912.0f;
    return (int)(to_bits(__fadd_rn(x, shift)) - to_bits(shift));
}

// The scale of values whose largest magnitude is this; 0 if all integers are to be 0.
__device__ __forceinline__ float quantise_scale(float largest) {
    float scale = __fdiv_rn(largest, 127.0f);
    return scale < 1.17549435e-38f ? 0.0f : scale;
}

// One value under a scale of quantise_scale: −127 … 127.
__device__ __forceinline__ int quantise_value(float x, float scale) {
    return scale == 0.0f ? 0 : round_to_integer(__fdiv_rn(x, scale));
}

// The same by a product with the scale's reciprocal, where that is certain to round alike: |x ÷ s| ≤ 127, so the product is
// within 3e-5 of the quotient, and so is the quotient as rounded to f32. Near a tie the division decides.
__device__ __forceinline__ int quantise_near(float x, float scale, float reciprocal) {
    const float product = __fmul_rn(x, reciprocal);
    const int near = round_to_integer(product);
    return fabsf(__fsub_rn(product, (float)near)) < 0.4999f ? near : quantise_value(x, scale);
}

// Four neighbouring values under one scale, the first in the lowest byte.
__device__ __forceinline__ uint32_t quantise_four(float4 x, float scale) {
    const float reciprocal = scale == 0.0f ? 0.0f : __fdiv_rn(1.0f, scale);
    return ((uint32_t)quantise_near(x.x, scale, reciprocal) & 0xffu) |
           ((uint32_t)quantise_near(x.y, scale, reciprocal) & 0xffu) << 8 |
           ((uint32_t)quantise_near(x.z, scale, reciprocal) & 0xffu) << 16 |
           (uint32_t)quantise_near(x.w, scale, reciprocal) << 24;
}

__device__ __forceinline__ float magnitude_of_four(float4 x) {
    return fmaxf(fmaxf(fabsf(x.x), fabsf(x.y)), fmaxf(fabsf(x.z), fabsf(x.w)));
}

// The largest of the values of `width` neighbouring lanes (a power of two, at most 32), in all of them. The whole warp calls.
template <int width>
__device__ __forceinline__ float largest_of_lanes(float value) {
#pragma unroll
    for (int apart = width / 2; apart > 0; apart /= 2) {
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, apart));
    }
    return value;
}

}  // namespace polylink
