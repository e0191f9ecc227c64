// The end of a product of bf16: from a warpgroup's accumulators, outputs × tokens, to rows of tokens.
//
// Through shared memory, 32 tokens at a time: then a thread has 4 neighbouring outputs of a token, and a warp writes whole
// sectors.
#pragma once

#include "gemm_async.cuh"
#include "gemm_params.cuh"

namespace polylink {

// Floats between two tokens in the staging memory: 64 outputs and a gap, so that neither side has bank conflicts.
constexpr uint32_t STAGING_PITCH = 68;

template <int NT>
constexpr uint32_t STAGING_TOKENS = NT < 32 ? NT : 32;

// Bytes of staging memory per warpgroup.
template <int NT>
constexpr uint32_t STAGING_BYTES = STAGING_TOKENS<NT> * STAGING_PITCH * 4;

__device__ __forceinline__ float4 load_four(const float* row, uint32_t at, uint32_t valid) {
    return at < valid ? *reinterpret_cast<const float4*>(row + at) : make_float4(0, 0, 0, 0);
}

__device__ __forceinline__ float4 add(float4 a, float4 b) {
    return make_float4(__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z), __fadd_rn(a.w, b.w));
}

__device__ __forceinline__ uint32_t pack_two(float low, float high) { return to_bf16(low) | (uint32_t)to_bf16(high) << 16; }

// Four neighbouring outputs of a token. `output` counts the outputs of the product (behind the gate).
__device__ __forceinline__ void store_outputs(const GemmParams& p, uint32_t token, uint32_t output, uint32_t valid, float4 v) {
    if (p.form == RowForm::F32) {
        if (output < valid) {
            *reinterpret_cast<float4*>(reinterpret_cast<float*>(p.output) + (uint64_t)token * p.output_pitch + output) = v;
        }
    } else {
        uint2 packed = make_uint2(pack_two(v.x, v.y), pack_two(v.z, v.w));
        *reinterpret_cast<uint2*>(p.output + tiled_offset(token, output, p.output_capacity)) = packed;
    }
}

// Sizes that are no multiples of 4 (a few vocabularies): one output at a time, without a gate.
__device__ __forceinline__ void store_slowly(const GemmParams& p, const float* staging, uint32_t row0, uint32_t rows,
                                             uint32_t token0, uint32_t tokens) {
#pragma unroll 1
    for (uint32_t at = threadIdx.x % 128; at < 64 * tokens; at += 128) {
        const uint32_t column = at % 64, output = row0 + column, token = token0 + at / 64;
        if (column >= rows || (output >= p.outputs && p.form == RowForm::F32)) {
            continue;
        }
        const uint64_t place = (uint64_t)token * p.output_pitch + output;
        float v = staging[at / 64 * STAGING_PITCH + column];
        if (output < p.outputs) {
            v = p.bias != nullptr ? __fadd_rn(v, p.bias[output]) : v;
            v = p.residual != nullptr ? __fadd_rn(p.residual[place], v) : v;
        }
        if (p.form == RowForm::F32) {
            reinterpret_cast<float*>(p.output)[place] = v;
        } else {
            *reinterpret_cast<uint16_t*>(p.output + tiled_offset(token, output, p.output_capacity)) = to_bf16(v);
        }
    }
}

__device__ __forceinline__ float gated(Gate gate, float x, float up) {
    return __fmul_rn(gate == Gate::Silu ? exact_silu(x) : exact_gelu_tanh(x), up);
}

// Stores outputs row0 … row0 + rows (at most 64) of tokens token0 … (below `tokens`). `staging`: this warpgroup's; `barrier`:
// a number of its own. Called by the warpgroup's 128 threads.
template <int NT>
__device__ __forceinline__ void gemm_epilogue(const GemmParams& p, const float (&d)[NT / 2], float* staging, uint32_t barrier,
                                              uint32_t row0, uint32_t rows, uint32_t token0, uint32_t tokens) {
    constexpr uint32_t CHUNK = STAGING_TOKENS<NT>;
    constexpr uint32_t STEPS = CHUNK / 8;  // with 16 threads per token and 128 threads
    const uint32_t thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32;
    float* const write = staging + 2 * (lane % 4) * STAGING_PITCH + 16 * warp + lane / 4;
    const uint32_t column = 4 * (thread % 16), first = thread / 16;
    const bool fours = p.outputs % 4 == 0 && p.output_pitch % 4 == 0, biased = p.bias != nullptr;
    const bool adds = p.residual != nullptr && fours;
#pragma unroll 1
    for (uint32_t chunk = 0; chunk < NT / CHUNK; ++chunk) {
        const uint32_t begin = token0 + chunk * CHUNK;
        if (begin >= tokens) {
            break;
        }
        // Residuals are asked for before the barrier, all at once.
        float4 residual[STEPS];
#pragma unroll
        for (uint32_t i = 0; i < STEPS; ++i) {
            uint32_t token = begin + first + 8 * i;
            residual[i] = make_float4(0, 0, 0, 0);
            if (adds && token < tokens && column < rows) {
                residual[i] = load_four(p.residual + (uint64_t)token * p.output_pitch, row0 + column, p.outputs);
            }
        }
        // The accumulator's indices must be constants.
#pragma unroll
        for (uint32_t c = 0; c < NT / CHUNK; ++c) {
            if (c == chunk) {
#pragma unroll
                for (uint32_t j = 0; j < CHUNK / 8; ++j) {
                    const uint32_t i = 4 * (c * (CHUNK / 8) + j);
                    float* at = write + 8 * j * STAGING_PITCH;
                    at[0] = d[i];
                    at[STAGING_PITCH] = d[i + 1];
                    at[8] = d[i + 2];
                    at[STAGING_PITCH + 8] = d[i + 3];
                }
            }
        }
        named_barrier(barrier, 128);
        if (!fours) {
            store_slowly(p, staging, row0, rows, begin, min(CHUNK, tokens - begin));
        } else if (p.gate == Gate::None) {
            const float4 bias = biased ? load_four(p.bias, row0 + column, p.outputs) : make_float4(0, 0, 0, 0);
#pragma unroll
            for (uint32_t i = 0; i < STEPS; ++i) {
                uint32_t token = begin + first + 8 * i;
                if (token < tokens && column < rows) {
                    float4 v = *reinterpret_cast<const float4*>(staging + (first + 8 * i) * STAGING_PITCH + column);
                    v = biased ? add(v, bias) : v;
                    store_outputs(p, token, row0 + column, p.outputs, adds ? add(residual[i], v) : v);
                }
            }
        } else {
            // 8 threads per token: block b of 16 rows, its gates 4 h … 4 h + 3 and their ups.
            const uint32_t from = 16 * (thread % 8 / 2) + 4 * (thread % 2);
#pragma unroll 1
            for (uint32_t at = thread / 8; at < CHUNK; at += 16) {
                uint32_t token = begin + at;
                if (token < tokens && from < rows) {
                    const float* pair = staging + at * STAGING_PITCH + from;
                    float4 x = *reinterpret_cast<const float4*>(pair), up = *reinterpret_cast<const float4*>(pair + 8);
                    if (biased) {
                        x = add(x, load_four(p.bias, row0 + from, p.outputs));
                        up = add(up, load_four(p.bias, row0 + from + 8, p.outputs));
                    }
                    float4 v = make_float4(gated(p.gate, x.x, up.x), gated(p.gate, x.y, up.y), gated(p.gate, x.z, up.z),
                                           gated(p.gate, x.w, up.w));
                    store_outputs(p, token, row0 / 2 + 4 * (thread % 8), p.outputs / 2, v);
                }
            }
        }
        named_barrier(barrier, 128);
    }
}

}  // namespace polylink
