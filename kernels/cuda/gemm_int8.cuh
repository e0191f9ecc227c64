// Exact products of 8-bit activations (docs/numerics.md, rule 3): out = residual + (total + bias).
//
// A block of threads computes BM rows × BN outputs over all inputs, group by group of 256: records of weights
// (int8_forms.cuh), integers and scales of the activations are copied to shared memory in the background, STAGES groups deep;
// weights are asked for before the kernels of the step before are waited for. Per block of 32 inputs the tensor cores give the
// sums of integers, exact in any order; each output then takes them in its one chain of f32, blocks ascending, ranges apart.
// So a row's bits depend neither on the tile nor on the other rows, and every shape of tile gives the same.
//
// Shared memory of a stage: [BN / 8][RECORD] ‖ integers [BM][256], the 16-byte pieces of a row exchanged by its number % 8 ‖
// scales [BM][8] f32, the two halves of a row exchanged by bit 2 of its number.
#pragma once

#include "int8_forms.cuh"

namespace polylink::exact {

struct Int8Params {
    const uint8_t* weights;    // records of this matrix
    const int8_t* quants;      // [rows][pitch]
    const float* scales;       // [rows][pitch / 32]
    const float* bias;         // [outputs], or null
    const float* residual;     // as out, or null; may be out
    float* out;                // [rows][out_pitch], this matrix from out's first column on
    const StepCounts* counts;  // one per group (grid.z)
    uint64_t matrix_bytes;     // of one matrix of a group
    uint32_t rows;             // of the launch at most
    uint32_t wanted;           // not 0: the wanted rows
    uint32_t pitch;            // q8_pitch(inputs)
    uint32_t outputs;
    uint32_t blocks;           // inputs / 32
    uint32_t range_blocks;     // of a K range
    uint32_t out_pitch;
};

// The scale of a row in a stage.
__device__ __forceinline__ uint32_t scale_place(uint32_t row, uint32_t block) {
    return row * 8 + (((block >> 2) ^ ((row >> 2) & 1)) << 2) + (block & 3);
}

// MT tiles of 16 rows (EIGHT: one of 8) and NT strips of 8 outputs per warp, WM × WN warps; SPLIT: more than one K range.
template <class Form, int MT, int NT, int WM, int WN, bool EIGHT, bool SPLIT, int STAGES>
struct Int8Tile {
    static constexpr int BM = EIGHT ? 8 : 16 * MT * WM;
    static constexpr int STRIPS = NT * WN;
    static constexpr int THREADS = 32 * WM * WN;
    static constexpr int WEIGHT_BYTES = STRIPS * Form::RECORD;
    static constexpr int STAGE_BYTES = WEIGHT_BYTES + BM * 256 + BM * 32;
    // Values per tile and strip in a lane.
    static constexpr int VALUES = EIGHT ? 2 : 4;
    static_assert(!EIGHT || (MT == 1 && WM == 1), "eight rows are one warp's");

    static __device__ __forceinline__ void copy_weights(const Int8Params& p, const uint8_t* weights, uint32_t stage,
                                                        uint32_t groups, uint32_t group) {
        constexpr uint32_t PIECES = Form::RECORD / 16;
        const uint32_t strips = (p.outputs + 7) / 8, first = blockIdx.x * STRIPS;
#pragma unroll
        for (uint32_t i = threadIdx.x; i < STRIPS * PIECES; i += THREADS) {
            uint32_t strip = i / PIECES, piece = i % PIECES;
            if (first + strip < strips) {
                copy_16(stage + i * 16, weights + ((uint64_t)(first + strip) * groups + group) * Form::RECORD + piece * 16);
            }
        }
    }

    static __device__ __forceinline__ void copy_rows(const Int8Params& p, const Share& share, uint32_t stage, uint32_t group) {
        const uint32_t first = blockIdx.y * BM;
        const int8_t* from = p.quants + (uint64_t)(share.first_row + first) * p.pitch + group * 256;
        const float* from_scales = p.scales + (uint64_t)(share.first_row + first) * (p.pitch / 32) + group * 8;
        const uint32_t quants = stage + WEIGHT_BYTES, scales = quants + BM * 256;
        for (uint32_t i = threadIdx.x; i < BM * 16; i += THREADS) {
            uint32_t row = i / 16, piece = i % 16;
            if (first + row < share.rows) {
                copy_16(quants + row * 256 + (piece ^ (row & 7)) * 16, from + (uint64_t)row * p.pitch + piece * 16);
            }
        }
        for (uint32_t i = threadIdx.x; i < BM * 2; i += THREADS) {
            uint32_t row = i / 2, half = i % 2;
            if (first + row < share.rows) {
                copy_16(scales + row * 32 + (half ^ ((row >> 2) & 1)) * 16,
                        from_scales + (uint64_t)row * (p.pitch / 32) + half * 4);
            }
        }
    }

    // One block of 32 inputs onto the chains.
    static __device__ __forceinline__ void fold(float (&sums)[MT][NT][VALUES], const uint8_t* stage, int block, int lane,
                                                int warp_m, int warp_n) {
        const int g = lane / 4, c = lane % 4;
        const uint8_t* quants = stage + WEIGHT_BYTES;
        const float* row_scales = reinterpret_cast<const float*>(quants + BM * 256);
        uint32_t a[MT][4];
        float scale[MT][2];
#pragma unroll
        for (int m = 0; m < MT; ++m) {
            const int first = (warp_m * MT + m) * 16;
            if constexpr (EIGHT) {
                const int row = lane & 7, piece = 2 * block + ((lane >> 3) & 1);
                load_rows_8(a[m], shared_address(quants + row * 256 + (piece ^ row) * 16));
                scale[m][0] = row_scales[scale_place(g, block)];
                scale[m][1] = 0.0f;
            } else {
                const int row = first + (lane & 15), piece = 2 * block + (lane >> 4);
                load_rows_16(a[m], shared_address(quants + row * 256 + (piece ^ (row & 7)) * 16));
                scale[m][0] = row_scales[scale_place(first + g, block)];
                scale[m][1] = row_scales[scale_place(first + g + 8, block)];
            }
        }
        constexpr uint32_t ONE = 0x4b400000u;
        float row_sums[MT][2];
        if constexpr (Form::FOLD == Fold::Minimum) {
#pragma unroll
            for (int m = 0; m < MT; ++m) {
                int sum[4];
                multiply_32(sum, a[m], 0x01010101u, 0x01010101u, (int)ONE);
                row_sums[m][0] = __fmul_rn(scale[m][0], __fsub_rn(__int_as_float(sum[0]), from_bits(ONE)));
                row_sums[m][1] = __fmul_rn(scale[m][1], __fsub_rn(__int_as_float(sum[2]), from_bits(ONE)));
            }
        }
        const float magic = from_bits(Form::MAGIC);
#pragma unroll
        for (int n = 0; n < NT; ++n) {
            const uint8_t* record = stage + (warp_n * NT + n) * Form::RECORD;
            uint32_t b0, b1;
            Form::quants(record, block, lane, b0, b1);
            const float2 scales = Form::scales(record, block, c);
            const float weight[2] = {scales.x, scales.y};
#pragma unroll
            for (int m = 0; m < MT; ++m) {
                if constexpr (Form::FOLD == Fold::Halves) {
                    const float2 low = Form::own(record, block, 0, c), high = Form::own(record, block, 1, c);
                    int first[4], second[4];
                    multiply_16(first, a[m][0], a[m][1], b0, (int)Form::MAGIC);
                    multiply_16(second, a[m][2], a[m][3], b1, (int)Form::MAGIC);
#pragma unroll
                    for (int v = 0; v < VALUES; ++v) {
                        // Integers below 2²⁴ all along: exact.
                        float dot = __fmul_rn(__fsub_rn(__int_as_float(first[v]), magic), v % 2 == 0 ? low.x : low.y);
                        dot = fmaf(__fsub_rn(__int_as_float(second[v]), magic), v % 2 == 0 ? high.x : high.y, dot);
                        sums[m][n][v] = fmaf(dot, __fmul_rn(scale[m][v / 2], weight[v % 2]), sums[m][n][v]);
                    }
                } else {
                    int dot[4];
                    multiply_32(dot, a[m], b0, b1, (int)Form::MAGIC);
#pragma unroll
                    for (int v = 0; v < VALUES; ++v) {
                        const float sum = __fsub_rn(__int_as_float(dot[v]), magic);
                        sums[m][n][v] = fmaf(sum, __fmul_rn(scale[m][v / 2], weight[v % 2]), sums[m][n][v]);
                    }
                    if constexpr (Form::FOLD == Fold::Minimum) {
                        const float2 minima = Form::minima(record, block, c);
#pragma unroll
                        for (int v = 0; v < VALUES; ++v) {
                            sums[m][n][v] = fmaf(row_sums[m][v / 2], v % 2 == 0 ? minima.x : minima.y, sums[m][n][v]);
                        }
                    }
                }
            }
        }
    }

    static __device__ __forceinline__ void store(const Int8Params& p, const float (&sums)[MT][NT][VALUES],
                                                 const Share& share, int lane, int warp_m, int warp_n) {
#pragma unroll
        for (int m = 0; m < MT; ++m) {
#pragma unroll
            for (int v = 0; v < VALUES; ++v) {
                const uint32_t row = blockIdx.y * BM + (warp_m * MT + m) * 16 + lane / 4 + (v / 2) * 8;
                if (row >= share.rows) {
                    continue;
                }
#pragma unroll
                for (int n = 0; n < NT; ++n) {
                    const uint32_t column = (blockIdx.x * STRIPS + warp_n * NT + n) * 8 + 2 * (lane % 4) + v % 2;
                    if (column >= p.outputs) {
                        continue;
                    }
                    const uint64_t at = (uint64_t)(share.first_row + row) * p.out_pitch + column;
                    float sum = sums[m][n][v];
                    if (p.bias != nullptr) {
                        sum = __fadd_rn(sum, p.bias[column]);
                    }
                    if (p.residual != nullptr) {
                        sum = __fadd_rn(p.residual[at], sum);
                    }
                    p.out[at] = sum;
                }
            }
        }
    }

    static __device__ __forceinline__ void run(const Int8Params& p, uint8_t* shared) {
        pdl_launch();
        const uint32_t base = shared_address(shared);
        const uint32_t groups = p.pitch / 256;
        // Which matrix of several it is, an earlier kernel says.
        const bool several = gridDim.z > 1;
        for (uint32_t group = 0; !several && group < STAGES - 1 && group < groups; ++group) {
            copy_weights(p, p.weights, base + group * STAGE_BYTES, groups, group);
        }
        pdl_wait();
        const Share share = share_of(p.counts, p.rows, p.wanted, p.matrix_bytes);
        const uint8_t* weights = p.weights + share.weights;
        if (blockIdx.y * BM >= share.rows) {
            copies_commit();
            copies_wait<0>();
            return;
        }
        for (uint32_t group = 0; several && group < STAGES - 1 && group < groups; ++group) {
            copy_weights(p, weights, base + group * STAGE_BYTES, groups, group);
        }
        for (uint32_t group = 0; group < STAGES - 1; ++group) {
            if (group < groups) {
                copy_rows(p, share, base + group * STAGE_BYTES, group);
            }
            copies_commit();
        }
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        const int warp_m = warp / WN, warp_n = warp % WN;
        float sums[MT][NT][VALUES] = {}, totals[MT][NT][VALUES];
        uint32_t end = p.range_blocks;
        bool first = true;
        uint32_t slot = 0, next = STAGES - 1;
        for (uint32_t group = 0; group < groups; ++group) {
            copies_wait<STAGES - 2>();
            __syncthreads();
            if (group + STAGES - 1 < groups) {
                copy_weights(p, weights, base + next * STAGE_BYTES, groups, group + STAGES - 1);
                copy_rows(p, share, base + next * STAGE_BYTES, group + STAGES - 1);
            }
            copies_commit();
            const uint8_t* stage = shared + slot * STAGE_BYTES;
            const uint32_t begin = group * 8;
            auto block = [&](uint32_t number) {
                if (SPLIT && begin + number == end) {
                    take(sums, totals, first);
                    first = false;
                    end += p.range_blocks;
                }
                fold(sums, stage, (int)number, lane, warp_m, warp_n);
            };
            if (begin + 8 <= p.blocks) {
#pragma unroll(MT *NT >= 8 ? 2 : 8)
                for (uint32_t number = 0; number < 8; ++number) {
                    block(number);
                }
            } else {
#pragma unroll 1
                for (uint32_t number = 0; begin + number < p.blocks; ++number) {
                    block(number);
                }
            }
            slot = slot + 1 == STAGES ? 0 : slot + 1;
            next = next + 1 == STAGES ? 0 : next + 1;
        }
        if constexpr (SPLIT) {
            take(sums, totals, first);
            store(p, totals, share, lane, warp_m, warp_n);
        } else {
            store(p, sums, share, lane, warp_m, warp_n);
        }
    }

    // A range is complete: the first one's sums are the totals, others are added.
    static __device__ __forceinline__ void take(float (&sums)[MT][NT][VALUES], float (&totals)[MT][NT][VALUES], bool first) {
#pragma unroll
        for (int m = 0; m < MT; ++m) {
#pragma unroll
            for (int n = 0; n < NT; ++n) {
#pragma unroll
                for (int v = 0; v < VALUES; ++v) {
                    totals[m][n][v] = first ? sums[m][n][v] : __fadd_rn(totals[m][n][v], sums[m][n][v]);
                    sums[m][n][v] = 0.0f;
                }
            }
        }
    }
};

}  // namespace polylink::exact

// A kernel of a form. Shared memory: `STAGES` stages, dynamic.
#define POLYLINK_INT8_KERNEL(name, Form, MT, NT, WM, WN, EIGHT, SPLIT, STAGES)                                              \
    extern "C" __global__ void __launch_bounds__(32 * WM * WN) name(const __grid_constant__ polylink::exact::Int8Params p) { \
        extern __shared__ __align__(128) uint8_t shared[];                                                                   \
        polylink::exact::Int8Tile<polylink::exact::Form, MT, NT, WM, WN, EIGHT, SPLIT, STAGES>::run(p, shared);              \
    }

// All shapes of tile, for a form; kernels/src/cuda/exact/int8.rs chooses.
#define POLYLINK_INT8_KERNELS(Form)                                              \
    POLYLINK_INT8_KERNEL(rows_8_by_16, Form, 1, 1, 1, 2, true, true, 8)          \
    POLYLINK_INT8_KERNEL(rows_8_by_32, Form, 1, 1, 1, 4, true, true, 8)          \
    POLYLINK_INT8_KERNEL(rows_16_by_16, Form, 1, 1, 1, 2, false, true, 8)        \
    POLYLINK_INT8_KERNEL(rows_16_by_32, Form, 1, 1, 1, 4, false, true, 8)        \
    POLYLINK_INT8_KERNEL(rows_64_by_32, Form, 2, 2, 2, 2, false, true, 4)        \
    POLYLINK_INT8_KERNEL(rows_64_by_64, Form, 2, 4, 2, 2, false, true, 3)        \
    POLYLINK_INT8_KERNEL(rows_128_by_128, Form, 4, 4, 2, 4, false, false, 3)     \
    POLYLINK_INT8_KERNEL(rows_128_by_128_split, Form, 4, 4, 2, 4, false, true, 3)
