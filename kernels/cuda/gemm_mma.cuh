// Products of bf16 by `mma.sync`, where there is no `wgmma` (sm_80 on): the parameters and layouts of gemm_ring_sm90a.cuh.
//
// A block takes 64 outputs (4 warps of 16) of NT tokens. An output is one chain of m16n8k16 instructions, k ascending, for
// any number of tokens.
#pragma once

#include "gemm_epilogue.cuh"
#include "gemm_fp8.cuh"
#include "gemm_params.cuh"

namespace polylink {

constexpr uint32_t MMA_STAGES = 4;

// 64 outputs of a k tile, as a block's weights lie in a stage.
struct Bf16Weights {
    static constexpr uint32_t BYTES = 8192, ROW_BYTES = 128;

    // Where byte `at` of k tile `k` comes from.
    static __device__ __forceinline__ const uint8_t* source(const uint8_t* weights, uint32_t k, uint32_t at) {
        return weights + (uint64_t)k * 8192 + at;
    }

    __device__ __forceinline__ void open(uint32_t, uint32_t, uint32_t) {}

    // The warp's 16 outputs of inputs 16 q on: rows are 128 bytes, their pieces exchanged as the tokens'.
    __device__ __forceinline__ void operand(uint32_t (&a)[4], uint32_t slot, uint32_t warp, uint32_t lane, uint32_t q) const {
        const uint32_t row = 16 * warp + lane % 16;
        load_matrices_4(a, slot + row * 128 + ((2 * q + lane / 16) ^ (row % 8)) * 16);
    }
};

// The same of e4m3: of each run of 8 outputs the half that the k tile is, and the scales.
struct Fp8Weights {
    static constexpr uint32_t EIGHT = 512 + 32;
    static constexpr uint32_t BYTES = 8 * EIGHT, ROW_BYTES = FP8_EIGHT_BYTES / 16;

    uint4 words[2];
    float scales[2];

    static __device__ __forceinline__ const uint8_t* source(const uint8_t* weights, uint32_t k, uint32_t at) {
        const uint32_t eight = at / EIGHT, within = at % EIGHT;
        return weights + (uint64_t)(k / 2) * 8 * FP8_EIGHT_BYTES + eight * FP8_EIGHT_BYTES +
               (within < 512 ? k % 2 * 512 + within : FP8_SCALES + within - 512);
    }

    __device__ __forceinline__ void open(uint32_t slot, uint32_t warp, uint32_t lane) {
#pragma unroll
        for (uint32_t i = 0; i < 2; ++i) {
            const uint32_t eight = slot + (2 * warp + i) * EIGHT;
            words[i] = load_shared_16(eight + lane * 16);
            scales[i] = load_shared_float(eight + 512 + lane / 4 * 4);
        }
    }

    __device__ __forceinline__ void operand(uint32_t (&a)[4], uint32_t, uint32_t, uint32_t, uint32_t q) const {
        float values[8];
        fp8_values(values, word_of(words[0], q), word_of(words[1], q), scales[0], scales[1]);
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            a[i] = pack_bf16(values[2 * i], values[2 * i + 1]);
        }
    }
};

template <int NT, class Weights>
__device__ __forceinline__ void mma_block(const GemmParams& p) {
    POLYLINK_DYNAMIC_SHARED(__align__(128) uint8_t, dynamic_shared);
    constexpr uint32_t SLOT = Weights::BYTES + NT * 128;
    float* staging = reinterpret_cast<float*>(dynamic_shared);
    const uint32_t ring = shared_address(dynamic_shared) + STAGING_BYTES<NT>;
    const uint32_t thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    pdl_launch();
    pdl_wait();
    const GemmRows rows = gemm_rows<Weights::ROW_BYTES>(p);
    const uint32_t token0 = rows.first_row + blockIdx.y * NT, tokens = rows.first_row + rows.tokens;
    if (token0 >= tokens) {
        return;
    }
    const uint8_t* weights = rows.weights + (uint64_t)blockIdx.x * p.k_tiles * (64 * Weights::ROW_BYTES);
    const uint8_t* input = p.input + (uint64_t)token0 * 128;
    // Rows behind the last token may lie behind the input: the last token stands for them.
    const uint32_t last = (min((uint32_t)NT, tokens - token0) - 1) * 128;
    auto copy_stage = [&](uint32_t k) {
        if (k < p.k_tiles) {
            const uint32_t slot = ring + k % MMA_STAGES * SLOT;
            for (uint32_t at = thread * 16; at < Weights::BYTES; at += 128 * 16) {
                copy_16(slot + at, Weights::source(weights, k, at));
            }
            for (uint32_t at = thread * 16; at < NT * 128; at += 128 * 16) {
                copy_16(slot + Weights::BYTES + at, input + (uint64_t)k * p.input_capacity * 128 + min(at, last + at % 128));
            }
        }
        copies_commit();
    };
    for (uint32_t k = 0; k < MMA_STAGES - 1; ++k) {
        copy_stage(k);
    }
    float d[NT / 2];
#pragma unroll
    for (uint32_t i = 0; i < NT / 2; ++i) {
        d[i] = 0;
    }
    // Rows of tokens are 128 bytes; their 16-byte pieces are exchanged by the row's number mod 8.
    const uint32_t b_row = lane % 8;
    Weights own;
#pragma unroll 1
    for (uint32_t k = 0; k < p.k_tiles; ++k) {
        copies_wait<MMA_STAGES - 2>();
        __syncthreads();
        copy_stage(k + MMA_STAGES - 1);
        const uint32_t slot = ring + k % MMA_STAGES * SLOT;
        own.open(slot, warp, lane);
#pragma unroll
        for (uint32_t q = 0; q < 4; ++q) {
            uint32_t a[4];
            own.operand(a, slot, warp, lane, q);
#pragma unroll
            for (uint32_t j = 0; j < NT / 8; ++j) {
                uint32_t b[2];
                load_matrices_2(b, slot + Weights::BYTES + (8 * j + b_row) * 128 + ((2 * q + lane / 8 % 2) ^ b_row) * 16);
                multiply(d + 4 * j, a, b);
            }
        }
    }
    gemm_epilogue<NT>(p, d, staging, 1, blockIdx.x * 64, 64, token0, tokens);
}

}  // namespace polylink
