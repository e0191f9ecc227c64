// How the row-wise kernels read and write rows of activations: four neighbouring values per thread.
#pragma once

#include <cuda_bf16.h>

#include "common.cuh"
#include "quantise.cuh"

namespace polylink {

// Where rows go, in one of the forms; `form` itself is a template's parameter. Mirrored by kernels/src/cuda/rows.rs.
struct RowTarget {
    uint8_t* data;          // 16-byte aligned; null: nothing is written
    float* scales;          // Q8: [rows][pitch / 32]
    uint32_t row_capacity;  // Bf16Tiled: rows of a panel
    uint32_t pitch;         // F32, Q8: values from row to row
};

// Columns that a row of this form needs written: bf16 panels are filled up with zeros.
template <RowForm form>
__device__ __forceinline__ uint32_t written_width(uint32_t width) {
    return form == RowForm::Bf16Tiled ? (width + 63u) / 64u * 64u : width;
}

// In a place of an expert's row: the expert is not held here.
constexpr uint32_t PLACE_NONE = 0xffffffffu;

// Whether rows of this width, one after the other, can be read 16 bytes at a time.
__device__ __forceinline__ bool in_fours(uint32_t width) { return width % 4 == 0; }

// Values col … col + 3 of a row; what lies beyond the width is 0. `fours`: the row is 16-byte aligned, col is a multiple of 4.
__device__ __forceinline__ float4 load_four(const float* row, uint32_t col, uint32_t width, bool fours) {
    if (fours) {
        return col < width ? *reinterpret_cast<const float4*>(row + col) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    return make_float4(col < width ? row[col] : 0.0f, col + 1 < width ? row[col + 1] : 0.0f,
                       col + 2 < width ? row[col + 2] : 0.0f, col + 3 < width ? row[col + 3] : 0.0f);
}

__device__ __forceinline__ void store_floats(float* row, uint32_t col, uint32_t width, bool fours, float4 x) {
    if (fours) {
        if (col < width) *reinterpret_cast<float4*>(row + col) = x;
        return;
    }
    if (col < width) row[col] = x.x;
    if (col + 1 < width) row[col + 1] = x.y;
    if (col + 2 < width) row[col + 2] = x.z;
    if (col + 3 < width) row[col + 3] = x.w;
}

// Two values as bf16, nearest even, the first in the low half. The instruction keeps denormals.
__device__ __forceinline__ uint32_t two_bf16(float low, float high) {
    __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<uint32_t*>(&pair);
}

// Stores values col … col + 3 of a row (col a multiple of 4, 0 beyond the width). Whole warps call it, lane after lane with the
// next four columns: a block of 32 columns is eight lanes that begin at a multiple of eight.
template <RowForm form>
__device__ __forceinline__ void store_four(const RowTarget& to, uint32_t row, uint32_t col, uint32_t width, float4 x) {
    if (form == RowForm::F32) {
        store_floats(reinterpret_cast<float*>(to.data) + (uint64_t)row * to.pitch, col, width, in_fours(to.pitch), x);
    } else if (form == RowForm::Bf16Tiled) {
        if (col < written_width<form>(width)) {
            uint2 packed = make_uint2(two_bf16(x.x, x.y), two_bf16(x.z, x.w));
            *reinterpret_cast<uint2*>(to.data + tiled_offset(row, col, to.row_capacity)) = packed;
        }
    } else {
        float scale = quantise_scale(largest_of_lanes<8>(magnitude_of_four(x)));
        if (col < width) {
            *reinterpret_cast<uint32_t*>(to.data + (uint64_t)row * to.pitch + col) = quantise_four(x, scale);
            if (col % QUANT_BLOCK == 0) {
                to.scales[(uint64_t)row * (to.pitch / QUANT_BLOCK) + col / QUANT_BLOCK] = scale;
            }
        }
    }
}

__device__ __forceinline__ float4 times(float4 x, float4 y) {
    return make_float4(__fmul_rn(x.x, y.x), __fmul_rn(x.y, y.y), __fmul_rn(x.z, y.z), __fmul_rn(x.w, y.w));
}

__device__ __forceinline__ float4 times(float4 x, float y) { return times(x, make_float4(y, y, y, y)); }

__device__ __forceinline__ float4 plus(float4 x, float4 y) {
    return make_float4(__fadd_rn(x.x, y.x), __fadd_rn(x.y, y.y), __fadd_rn(x.z, y.z), __fadd_rn(x.w, y.w));
}

// Folds 64 lanes (rule 4) of which this warp's lane l holds l and l + 32; every lane gets the sum.
__device__ __forceinline__ float fold_lanes(float low, float high) {
    float sum = __fadd_rn(low, high);
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) {
        sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, apart));
    }
    return sum;
}

// 1 ÷ √(sum ÷ n + eps).
__device__ __forceinline__ float norm_scale(float sum, uint32_t n, float eps) {
    return __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(sum, (float)n), eps)));
}

// In a sequence's flags: it is turned by the long tables.
constexpr uint32_t SEQUENCE_LONG = 1;

// A pair of a head after its turn (rule 5).
__device__ __forceinline__ float turned_low(float low, float high, float cosine, float sine) {
    return __fsub_rn(__fmul_rn(low, cosine), __fmul_rn(high, sine));
}

__device__ __forceinline__ float turned_high(float low, float high, float cosine, float sine) {
    return __fadd_rn(__fmul_rn(high, cosine), __fmul_rn(low, sine));
}

}  // namespace polylink
