// Weights of e4m3 for products of bf16, a scale per output and 128 inputs; each number is brought to bf16(number x scale in f32),
// nearest even both times, when it is used: what a weight of bf16 holds that was made of the same folder. So the bits of a product
// are that one's.
//
// Tiles of 64 outputs x 128 inputs lie as those of bf16 do. In a tile 8 outputs are a run of EIGHT_BYTES: the numbers of 64 inputs,
// those of the next 64, then 8 scales, in f32, times 2^120. In 64 inputs lane l of a warp has 16 bytes: of output l / 4 a word for
// each 16 inputs, whose bytes are inputs c, c + 8, c + 1, c + 9 for c = 2 (l % 4). So a word's even and odd bytes are two
// registers of the product's left operand (PTX ISA, mma m16n8k16 and wgmma with A in registers).
#pragma once

#include "common.cuh"
#include "gemm_tools.cuh"

namespace polylink {

constexpr uint32_t FP8_EIGHT_BYTES = 2 * 512 + 32;
constexpr uint32_t FP8_SCALES = 2 * 512;

// Word q of four.
__device__ __forceinline__ uint32_t word_of(const uint4& words, uint32_t q) {
    return q == 0 ? words.x : q == 1 ? words.y : q == 2 ? words.z : words.w;
}

// Two numbers, each in the higher byte of a half with its exponent and mantissa moved to a bf16's places, which makes it 2^-120 of
// itself, denormal ones too: times a scale, which has 2^120 in it.
__device__ __forceinline__ void fp8_scaled(float* values, uint32_t moved, float scale) {
    values[0] = __fmul_rn(from_bits(moved << 16), scale);
    values[1] = __fmul_rn(from_bits(moved & 0xffff0000u), scale);
}

// The left operand's values of 16 inputs, two for each of its registers: of a word of 8 outputs, and one of the next 8.
__device__ __forceinline__ void fp8_values(float* values, uint32_t first, uint32_t second, float first_scale, float second_scale) {
    fp8_scaled(values, (first << 8 & 0x80008000u) | (first << 4 & 0x07f007f0u), first_scale);
    fp8_scaled(values + 2, (second << 8 & 0x80008000u) | (second << 4 & 0x07f007f0u), second_scale);
    fp8_scaled(values + 4, (first & 0x80008000u) | (first >> 4 & 0x07f007f0u), first_scale);
    fp8_scaled(values + 6, (second & 0x80008000u) | (second >> 4 & 0x07f007f0u), second_scale);
}

}  // namespace polylink
