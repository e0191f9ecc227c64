// Keys and values of the exact attention as f32, whatever the cache keeps: exact, and cheap.
#pragma once

#include "common.cuh"

namespace polylink::exact {

enum class Kv { F32, Bf16, Int8, Fp8 };

// Whether each row has a scale.
template <Kv kind>
constexpr bool SCALED = kind == Kv::Int8 || kind == Kv::Fp8;

// Two neighbouring values of a row, and four or more scores' worth of one.
template <Kv kind>
struct Values;

template <>
struct Values<Kv::F32> {
    static constexpr uint32_t BYTES = 4;
    static __device__ __forceinline__ float2 two(const uint8_t* row, uint32_t pair) {
        return reinterpret_cast<const float2*>(row)[pair];
    }
    // Values 4 i … 4 i + 3.
    static __device__ __forceinline__ float4 four(const uint8_t* row, uint32_t i) {
        return reinterpret_cast<const float4*>(row)[i];
    }
};

template <>
struct Values<Kv::Bf16> {
    static constexpr uint32_t BYTES = 2;
    static __device__ __forceinline__ float2 widen(uint32_t word) {
        return make_float2(from_bits(word << 16), from_bits(word & 0xffff0000u));
    }
    static __device__ __forceinline__ float2 two(const uint8_t* row, uint32_t pair) {
        return widen(reinterpret_cast<const uint32_t*>(row)[pair]);
    }
    static __device__ __forceinline__ float4 four(const uint8_t* row, uint32_t i) {
        const uint2 words = reinterpret_cast<const uint2*>(row)[i];
        const float2 low = widen(words.x), high = widen(words.y);
        return make_float4(low.x, low.y, high.x, high.y);
    }
};

template <>
struct Values<Kv::Int8> {
    static constexpr uint32_t BYTES = 1;
    // Byte `at` of a word of integers moved up by 128: the bits of 2²³ + 128 + q.
    template <uint32_t at>
    static __device__ __forceinline__ float widen(uint32_t word) {
        return __fsub_rn(from_bits(__byte_perm(word, 0x4b000000u, 0x7540u | at)), 8388736.0f);
    }
    static __device__ __forceinline__ float2 two(const uint8_t* row, uint32_t pair) {
        const uint32_t word = reinterpret_cast<const uint16_t*>(row)[pair] ^ 0x8080u;
        return make_float2(widen<0>(word), widen<1>(word));
    }
    static __device__ __forceinline__ float4 four(const uint8_t* row, uint32_t i) {
        const uint32_t word = reinterpret_cast<const uint32_t*>(row)[i] ^ 0x80808080u;
        return make_float4(widen<0>(word), widen<1>(word), widen<2>(word), widen<3>(word));
    }
};

template <>
struct Values<Kv::Fp8> {
    static constexpr uint32_t BYTES = 1;
    // The highest byte of a word: its bits are those of an f32 of 2⁻¹²⁰ of it, a denormal one too.
    static __device__ __forceinline__ float widen(uint32_t word) {
        return __fmul_rn(from_bits((word & 0x80000000u) | (word & 0x7f000000u) >> 4), from_bits(247u << 23));
    }
    static __device__ __forceinline__ float2 two(const uint8_t* row, uint32_t pair) {
        const uint32_t word = reinterpret_cast<const uint16_t*>(row)[pair];
        return make_float2(widen(word << 24), widen(word << 16));
    }
    static __device__ __forceinline__ float4 four(const uint8_t* row, uint32_t i) {
        const uint32_t word = reinterpret_cast<const uint32_t*>(row)[i];
        return make_float4(widen(word << 24), widen(word << 16), widen(word << 8), widen(word));
    }
};

}  // namespace polylink::exact
