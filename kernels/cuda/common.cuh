// What every kernel shares: the order of a step's kernels, its counts, layouts, and the exact functions.
//
// The exact functions are those of protocol/src/exact_math.rs and noise.rs, operation by operation (docs/numerics.md,
// rule 1). Files that include this are compiled with -fmad=false: a multiply-add is fused only where fmaf stands.
#pragma once

#include <cstdint>

// A block's dynamic shared memory, by a name; the emulator has one of its own.
#ifndef POLYLINK_DYNAMIC_SHARED
#define POLYLINK_DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

namespace polylink {

// How much of a step's fixed geometry is in use; lies in device memory and is written anew for every step.
struct StepCounts {
    uint32_t rows;              // input rows
    uint32_t wanted;            // rows whose logits are wanted
    uint32_t sequences;
    uint32_t attention_items;   // by the attention's planner
    uint32_t attention_merges;
    uint32_t sample_rows;
    // Of products with grid.z = g groups (a mixture of experts): group z takes counts[z] in place of counts[0], so that its rows
    // are first_row … first_row + rows of the input and of the output, and its weight begins matrix × the bytes of one matrix
    // after the first. first_row is a multiple of 8 (the swizzle's period), and rows may be 0. Elsewhere both are 0.
    uint32_t first_row;
    uint32_t matrix;
};

// Waits until all earlier kernels of the step are complete and their writes visible. Before it a kernel may only read what
// no kernel of a step writes: weights, tables.
__device__ __forceinline__ void pdl_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the next kernel of the step be launched as soon as there is room; what it reads waits by pdl_wait.
__device__ __forceinline__ void pdl_launch() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// Byte of element (row, col) of activations in bf16: panels of 64 columns, each [row_capacity][128 bytes], the 16-byte pieces
// of a row exchanged as the 128-byte swizzle of shared memory wants them.
__host__ __device__ __forceinline__ uint64_t tiled_offset(uint32_t row, uint32_t col, uint32_t row_capacity) {
    return (uint64_t)(col / 64) * row_capacity * 128 + (uint64_t)row * 128 + ((((col / 8) % 8) ^ (row % 8)) * 16) + (col % 8) * 2;
}

// Byte of element (n, k) of a weight in bf16: tiles of 64 × 64, each 8 KiB, swizzled alike. k_padded: a multiple of 64.
__host__ __device__ __forceinline__ uint64_t weight_tile_offset(uint32_t n, uint32_t k, uint32_t k_padded) {
    return ((uint64_t)(n / 64) * (k_padded / 64) + k / 64) * 8192 + (n % 64) * 128 + ((((k / 8) % 8) ^ (n % 8)) * 16) +
           (k % 8) * 2;
}

// How a writer leaves a row of activations.
enum class RowForm : uint32_t {
    F32 = 0,        // [rows][width] f32
    Bf16Tiled = 1,  // tiled_offset; nearest even
    Q8 = 2,         // i8 integers and f32 scales per 32 (rule 3), rows padded: q8_pitch in quantise.cuh
};

__device__ __forceinline__ float from_bits(uint32_t bits) { return __uint_as_float(bits); }
__device__ __forceinline__ uint32_t to_bits(float value) { return __float_as_uint(value); }

__device__ __forceinline__ float power_of_two(int n) { return from_bits((uint32_t)(n + 127) << 23); }

__device__ __forceinline__ float exact_exp(float x) {
    x = x < -104.0f ? -104.0f : x;
    x = x > 89.0f ? 89.0f : x;
    const float round = 12582912.0f;
    float shifted = __fadd_rn(__fmul_rn(x, 1.44269504088896340736f), round);
    float n = __fsub_rn(shifted, round);
    int integer = (int)to_bits(shifted) - (int)to_bits(round);
    float r = __fsub_rn(x, __fmul_rn(n, 0.6933594f));
    r = __fsub_rn(r, __fmul_rn(n, -2.1219444e-4f));
    float p = 1.9875692e-4f;
    p = __fadd_rn(__fmul_rn(p, r), 1.3982e-3f);
    p = __fadd_rn(__fmul_rn(p, r), 8.333452e-3f);
    p = __fadd_rn(__fmul_rn(p, r), 4.1665796e-2f);
    p = __fadd_rn(__fmul_rn(p, r), 1.6666665e-1f);
    p = __fadd_rn(__fmul_rn(p, r), 0.5f);
    p = __fadd_rn(__fadd_rn(__fmul_rn(p, __fmul_rn(r, r)), r), 1.0f);
    int half = integer >> 1;
    return __fmul_rn(__fmul_rn(p, power_of_two(half)), power_of_two(integer - half));
}

__device__ __forceinline__ float exact_ln(float x) {
    uint32_t bits = to_bits(x) + (0x3f800000u - 0x3f3504f3u);
    float e = (float)((int)(bits >> 23) - 127);
    float m = from_bits((bits & 0x007fffffu) + 0x3f3504f3u);
    float f = __fsub_rn(m, 1.0f);
    float z = __fmul_rn(f, f);
    float p = 7.0376836e-2f;
    p = __fadd_rn(__fmul_rn(p, f), -1.151461e-1f);
    p = __fadd_rn(__fmul_rn(p, f), 1.1676999e-1f);
    p = __fadd_rn(__fmul_rn(p, f), -1.2420141e-1f);
    p = __fadd_rn(__fmul_rn(p, f), 1.4249323e-1f);
    p = __fadd_rn(__fmul_rn(p, f), -1.6668057e-1f);
    p = __fadd_rn(__fmul_rn(p, f), 2.0000715e-1f);
    p = __fadd_rn(__fmul_rn(p, f), -2.4999994e-1f);
    p = __fadd_rn(__fmul_rn(p, f), 3.333333e-1f);
    float y = __fmul_rn(__fmul_rn(f, z), p);
    y = __fadd_rn(y, __fmul_rn(e, -2.1219444e-4f));
    y = __fsub_rn(y, __fmul_rn(0.5f, z));
    return __fadd_rn(__fadd_rn(f, y), __fmul_rn(e, 0.6933594f));
}

__device__ __forceinline__ float exact_silu(float x) { return __fdiv_rn(x, __fadd_rn(1.0f, exact_exp(-x))); }

__device__ __forceinline__ float exact_tanh(float x) {
    float magnitude = fabsf(x);
    float z = __fmul_rn(x, x);
    float p = -5.7049887e-3f;
    p = __fadd_rn(__fmul_rn(p, z), 2.0639088e-2f);
    p = __fadd_rn(__fmul_rn(p, z), -5.3739716e-2f);
    p = __fadd_rn(__fmul_rn(p, z), 1.3331442e-1f);
    p = __fadd_rn(__fmul_rn(p, z), -3.333328e-1f);
    float near = __fadd_rn(__fmul_rn(__fmul_rn(p, z), x), x);
    float far = __fsub_rn(1.0f, __fdiv_rn(2.0f, __fadd_rn(exact_exp(__fmul_rn(2.0f, magnitude)), 1.0f)));
    far = from_bits(to_bits(far) | (to_bits(x) & 0x80000000u));
    return magnitude < 0.625f ? near : far;
}

__device__ __forceinline__ float exact_gelu_tanh(float x) {
    float u = __fmul_rn(x, __fadd_rn(1.595769f, __fmul_rn(7.135481e-2f, __fmul_rn(x, x))));
    return __fdiv_rn(x, __fadd_rn(1.0f, exact_exp(-u)));
}

__device__ __forceinline__ float exact_soft_cap(float x, float cap) { return __fmul_rn(cap, exact_tanh(__fdiv_rn(x, cap))); }

// Nearest even by integers; denormals kept.
__device__ __forceinline__ uint16_t to_bf16(float x) {
    uint32_t bits = to_bits(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) {
        return (uint16_t)((bits >> 16) | 0x0040u);
    }
    return (uint16_t)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

__device__ __forceinline__ float from_bf16(uint16_t bits) { return from_bits((uint32_t)bits << 16); }

struct Words4 {
    uint32_t word[4];
};

// Philox 4x32 with 10 rounds; the low word of the key first.
__device__ __forceinline__ Words4 philox_4x32_10(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint64_t key) {
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        uint32_t a_high = __umulhi(c0, 0xd2511f53u), a_low = c0 * 0xd2511f53u;
        uint32_t b_high = __umulhi(c2, 0xcd9e8d57u), b_low = c2 * 0xcd9e8d57u;
        c0 = b_high ^ c1 ^ k0;
        c1 = b_low;
        c2 = a_high ^ c3 ^ k1;
        c3 = a_low;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    return {{c0, c1, c2, c3}};
}

__device__ __forceinline__ float gumbel_from_bits(uint32_t x) {
    float u = __fmul_rn(__fadd_rn((float)(x >> 9), 0.5f), from_bits(0x34000000u));
    return -exact_ln(-exact_ln(u));
}

}  // namespace polylink
