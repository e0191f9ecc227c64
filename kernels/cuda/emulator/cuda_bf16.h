// What the kernels use of CUDA's header, for the emulator.
#pragma once

struct __nv_bfloat162 {
    uint16_t x, y;
};

inline uint16_t emulated_bf16(float value) {
    uint32_t bits = __float_as_uint(value);
    return (bits & 0x7fffffffu) > 0x7f800000u ? 0x7fff : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
}

inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {emulated_bf16(x), emulated_bf16(y)}; }
