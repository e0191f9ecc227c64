// What a product of bf16 is given, the weight's numbers in bf16 or e4m3; mirrored by kernels/src/cuda/gemm.rs.
#pragma once

#include "common.cuh"

namespace polylink {

enum class Gate : uint32_t { None = 0, Silu = 1, GeluTanh = 2 };

// output[t][n] = residual[t][n] + (Σ_k input[t][k] × weights[n][k] + bias[n]), k ascending, in f32.
//
// With a gate, rows 16 i + (0…7) of the weight are gates and rows 16 i + 8 + (0…7) their ups, and
// output[t][8 i + j] = gate(sum of row 16 i + j) × (sum of row 16 i + 8 + j), biases added before, no residual.
struct GemmParams {
    const uint8_t* weights;      // weight_tile_offset, or that of gemm_fp8.cuh; both sizes padded to tiles with zeros
    const uint8_t* input;        // tiled_offset, k padded with zeros
    const float* bias;           // [outputs], or null
    const float* residual;       // [rows][output_pitch], may be the output itself; or null
    uint8_t* output;             // RowForm::F32: [rows][output_pitch] f32; Bf16Tiled: tiled_offset
    const StepCounts* counts;
    uint32_t wanted;             // 0: counts->rows rows, 1: counts->wanted
    uint32_t input_capacity;     // rows that the input's panels have
    uint32_t output_capacity;    // likewise (Bf16Tiled)
    uint32_t output_pitch;       // f32 per row (F32)
    uint32_t outputs;            // rows of the weight that are not padding (a multiple of 16 with a gate)
    uint32_t padded_outputs;     // multiple of 64 (of 128 with a gate)
    uint32_t k_tiles;            // inputs / 64, rounded up
    RowForm form;
    Gate gate;
    // Geometry (kernels/src/cuda/gemm.rs says how it is chosen); none of it changes a sum's order.
    uint32_t stream;             // 1: every block takes its share of the outputs for all tokens; 0: blocks take tiles
    uint32_t units;              // stream: padded_outputs / unit_rows
    uint32_t unit_rows;          // stream: 8, or 16 with a gate
    uint32_t passes;             // stream: how many pieces a block's share is taken in
    uint32_t pass_rows;          // outputs of a piece, at most; a multiple of 8
    uint32_t stage_k_tiles;      // k tiles of a stage of the ring: 1, 2 or 4, and a divisor of k_tiles
    uint32_t stages;             // at most 16
    uint32_t cluster;            // blocks of a cluster: they share the tokens
    uint32_t group;              // tiles: so many tiles of tokens are walked before the next outputs
    // 1: block z takes counts[z], whose rows lie at first_row of input and output and whose weight is number `matrix` of those
    // that follow each other; 0: counts[0], and the first weight, known before counts are.
    uint32_t grouped;
};

// What the counts say.
struct GemmRows {
    const uint8_t* weights;
    uint32_t tokens, first_row;
};

// After pdl_wait. ROW_BYTES: what a k tile of an output takes of the weight.
template <uint32_t ROW_BYTES>
__device__ __forceinline__ GemmRows gemm_rows(const GemmParams& p) {
    const StepCounts& counts = p.counts[p.grouped ? blockIdx.z : 0];
    const uint64_t weight_bytes = (uint64_t)p.padded_outputs * p.k_tiles * ROW_BYTES;
    return {p.weights + (p.grouped ? counts.matrix * weight_bytes : 0), p.wanted ? counts.wanted : counts.rows,
            p.grouped ? counts.first_row : 0};
}

}  // namespace polylink
