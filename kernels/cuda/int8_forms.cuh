// How weights of 8 bits and fewer lie in memory for the exact products, and how a lane takes its share of a block.
//
// A matrix is cut into strips of 8 outputs, a strip into groups of 256 inputs (eight blocks of 32): one record each, at
// (strip × groups + group) × RECORD. Outputs and inputs are padded with zeros; blocks beyond the inputs are never used. Lane
// l of a warp takes of a block, for output l / 4 of the strip, inputs 4 (l % 4) … + 3 (its first word, b0) and
// 16 + 4 (l % 4) … + 3 (b1), as the right operand of mma.m16n8k32 wants them. In a record:
//
// * Q8_0: [block][lane][b0, b1] ‖ [block][output] f16 d
// * Q4_0: [block][lane] word: nibbles in two's complement, b0's low and b1's high ‖ [block][output] f16 d
// * Q4_K: [block][lane] word of nibbles ‖ [output] f16 d ‖ [output] f16 dmin ‖ [block][output] u8 scale ‖ [block][output] u8 min
// * Q5_K: [block][lane] nibbles ‖ [block / 4][lane] word: bit 2 (block % 4) + h of byte i is the fifth bit of byte i of bh ‖ as Q4_K
// * Q6_K: [block][lane] low nibbles of q − 32 in two's complement ‖ [block / 2][lane] word: bits 4 (block % 2) + 2 h and the
//   next of byte i are the upper bits of byte i of bh ‖ [output] f16 d ‖ [block][half][output] i8 scale
//
// Sums of integers start at the bits of a float, MAGIC, whose last place is worth 1 (or 1/16, 1/4 where the integers come
// multiplied by 16 or 4): then their bits are those of MAGIC + sum, and one subtraction leaves the sum as a float, exactly.
#pragma once

#include "exact_tools.cuh"

namespace polylink::exact {

// Which operations a block needs.
enum class Fold { Plain, Minimum, Halves };

__device__ __forceinline__ uint32_t word_at(const uint8_t* at) { return *reinterpret_cast<const uint32_t*>(at); }

// Lane's share of the strip's numbers per output: outputs 2 c and 2 c + 1, c = lane % 4.
struct Q8_0 {
    static constexpr int RECORD = 2176;
    static constexpr Fold FOLD = Fold::Plain;
    static constexpr uint32_t MAGIC = 0x4b400000u;
    static __device__ __forceinline__ void quants(const uint8_t* record, int block, int lane, uint32_t& b0, uint32_t& b1) {
        uint2 words = *reinterpret_cast<const uint2*>(record + block * 256 + lane * 8);
        b0 = words.x;
        b1 = words.y;
    }
    static __device__ __forceinline__ float2 scales(const uint8_t* record, int block, int c) {
        return widen(record + 2048 + block * 16 + c * 4);
    }
};

struct Q4_0 {
    static constexpr int RECORD = 1152;
    static constexpr Fold FOLD = Fold::Plain;
    static constexpr uint32_t MAGIC = 0x49400000u;  // integers times 16
    static __device__ __forceinline__ void quants(const uint8_t* record, int block, int lane, uint32_t& b0, uint32_t& b1) {
        uint32_t word = word_at(record + block * 128 + lane * 4);
        b0 = (word << 4) & 0xf0f0f0f0u;
        b1 = word & 0xf0f0f0f0u;
    }
    static __device__ __forceinline__ float2 scales(const uint8_t* record, int block, int c) {
        return widen(record + 1024 + block * 16 + c * 4);
    }
};

// The numbers of Q4_K and Q5_K, which begin at `at`.
struct Minima {
    // d × scale, exact.
    static __device__ __forceinline__ float2 scales(const uint8_t* at, int block, int c) {
        float2 d = widen(at + c * 4);
        uchar2 scale = *reinterpret_cast<const uchar2*>(at + 32 + block * 8 + c * 2);
        return make_float2(__fmul_rn(d.x, (float)scale.x), __fmul_rn(d.y, (float)scale.y));
    }
    // −(dmin × min), exact.
    static __device__ __forceinline__ float2 minima(const uint8_t* at, int block, int c) {
        float2 d = widen(at + 16 + c * 4);
        uchar2 minimum = *reinterpret_cast<const uchar2*>(at + 96 + block * 8 + c * 2);
        return make_float2(-__fmul_rn(d.x, (float)minimum.x), -__fmul_rn(d.y, (float)minimum.y));
    }
};

struct Q4_K {
    static constexpr int RECORD = 1184;
    static constexpr Fold FOLD = Fold::Minimum;
    static constexpr uint32_t MAGIC = 0x4b400000u;
    static __device__ __forceinline__ void quants(const uint8_t* record, int block, int lane, uint32_t& b0, uint32_t& b1) {
        uint32_t word = word_at(record + block * 128 + lane * 4);
        b0 = word & 0x0f0f0f0fu;
        b1 = (word >> 4) & 0x0f0f0f0fu;
    }
    static __device__ __forceinline__ float2 scales(const uint8_t* record, int block, int c) {
        return Minima::scales(record + 1024, block, c);
    }
    static __device__ __forceinline__ float2 minima(const uint8_t* record, int block, int c) {
        return Minima::minima(record + 1024, block, c);
    }
};

struct Q5_K {
    static constexpr int RECORD = 1440;
    static constexpr Fold FOLD = Fold::Minimum;
    static constexpr uint32_t MAGIC = 0x4b400000u;
    static __device__ __forceinline__ void quants(const uint8_t* record, int block, int lane, uint32_t& b0, uint32_t& b1) {
        uint32_t word = word_at(record + block * 128 + lane * 4);
        uint32_t fifths = word_at(record + 1024 + (block / 4) * 128 + lane * 4) >> (2 * (block % 4));
        b0 = (word & 0x0f0f0f0fu) | ((fifths << 4) & 0x10101010u);
        b1 = ((word >> 4) & 0x0f0f0f0fu) | ((fifths << 3) & 0x10101010u);
    }
    static __device__ __forceinline__ float2 scales(const uint8_t* record, int block, int c) {
        return Minima::scales(record + 1280, block, c);
    }
    static __device__ __forceinline__ float2 minima(const uint8_t* record, int block, int c) {
        return Minima::minima(record + 1280, block, c);
    }
};

struct Q6_K {
    static constexpr int RECORD = 1680;
    static constexpr Fold FOLD = Fold::Halves;
    static constexpr uint32_t MAGIC = 0x4a400000u;  // integers times 4
    static __device__ __forceinline__ void quants(const uint8_t* record, int block, int lane, uint32_t& b0, uint32_t& b1) {
        uint32_t word = word_at(record + block * 128 + lane * 4);
        uint32_t upper = word_at(record + 1024 + (block / 2) * 128 + lane * 4) >> (4 * (block % 2));
        b0 = ((word << 2) & 0x3c3c3c3cu) | ((upper << 6) & 0xc0c0c0c0u);
        b1 = ((word >> 2) & 0x3c3c3c3cu) | ((upper << 4) & 0xc0c0c0c0u);
    }
    // d.
    static __device__ __forceinline__ float2 scales(const uint8_t* record, int, int c) { return widen(record + 1536 + c * 4); }
    // The block's own scales of its first or last 16 inputs.
    static __device__ __forceinline__ float2 own(const uint8_t* record, int block, int half, int c) {
        char2 scale = *reinterpret_cast<const char2*>(record + 1552 + (block * 2 + half) * 8 + c * 2);
        return make_float2((float)scale.x, (float)scale.y);
    }
};

}  // namespace polylink::exact
