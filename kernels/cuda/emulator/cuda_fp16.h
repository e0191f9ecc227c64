// What the kernels use of CUDA's header, for the emulator; halves are the compiler's own.
#pragma once

struct __half {
    _Float16 value;
};

struct __half2 {
    __half x, y;
};

inline __half __float2half_rn(float value) { return {(_Float16)value}; }

inline uint16_t __half_as_ushort(__half half) {
    uint16_t bits;
    memcpy(&bits, &half, 2);
    return bits;
}

inline float2 __half22float2(__half2 pair) { return {(float)pair.x.value, (float)pair.y.value}; }
