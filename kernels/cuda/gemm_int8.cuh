// Exact products of 8-bit activations (docs/numerics.md, rule 3): out = residual + (total + bias).
//
// A block of threads computes BM rows × BN outputs over all inputs, group by group of 256: records of weights
// (int8_forms.cuh), integers and scales of the activations are copied to shared memory in the background, STAGES groups deep;
// weights are asked for before the kernels of the step before are waited for. Per block of 32 inputs the tensor cores give the
// sums of integers, exact in any order; each output then takes them in its one chain of f32, blocks ascending, ranges apart.
// So a row's bits depend neither on the tile nor on the other rows, and every shape of tile gives the same.
//
// Shared memory: stages of [BN / 8][RECORD] ‖ integers [BM][272], 256 used ‖ scales [BM][12] f32, 8 used: so neighbouring rows
// lie in unlike banks; then a barrier per stage, for the bulk copies of the records where there are bulk copies.
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

// Bytes of a row of integers and of one of scales in a stage.
constexpr uint32_t QUANTS_PITCH = 272, SCALES_PITCH = 48;

// MT tiles of 16 rows (EIGHT: one of 8) and NT strips of 8 outputs per warp, WM × WN warps; SPLIT: more than one K range.
template <class Form, int MT, int NT, int WM, int WN, bool EIGHT, bool SPLIT, int STAGES>
struct Int8Tile {
    static constexpr int BM = EIGHT ? 8 : 16 * MT * WM;
    static constexpr int STRIPS = NT * WN;
    static constexpr int THREADS = 32 * WM * WN;
    static constexpr int WEIGHT_BYTES = STRIPS * Form::RECORD;
    static constexpr int STAGE_BYTES = WEIGHT_BYTES + BM * (QUANTS_PITCH + SCALES_PITCH);
    static constexpr int BARRIERS = STAGES * STAGE_BYTES;
    // Blocks whose sums of integers are asked for together.
    static constexpr int BATCH = MT * NT == 1 ? 4 : MT * NT <= 4 ? 2 : 1;
    // Values per tile and strip in a lane.
    static constexpr int VALUES = EIGHT ? 2 : 4;
    static_assert(!EIGHT || (MT == 1 && WM == 1), "eight rows are one warp's");

    static __device__ __forceinline__ void copy_weights(const Int8Params& p, const uint8_t* weights, uint32_t base,
                                                        uint32_t slot, uint32_t groups, uint32_t group) {
        const uint32_t stage = base + slot * STAGE_BYTES, first = blockIdx.x * STRIPS, strips = (p.outputs + 7) / 8 - first;
#ifdef POLYLINK_BULK
        const uint32_t barrier = base + BARRIERS + slot * 8, own = strips < STRIPS ? strips : STRIPS;
        if (threadIdx.x == 0) {
            barrier_arrive_bytes(barrier, own * Form::RECORD);
        }
        if (threadIdx.x % 32 == 0) {
            for (uint32_t strip = threadIdx.x / 32; strip < own; strip += WM * WN) {
                copy_bulk(stage + strip * Form::RECORD,
                          weights + ((uint64_t)(first + strip) * groups + group) * Form::RECORD, Form::RECORD, barrier);
            }
        }
#else
        constexpr uint32_t PIECES = Form::RECORD / 16;
#pragma unroll 2
        for (uint32_t i = threadIdx.x; i < STRIPS * PIECES; i += THREADS) {
            const uint32_t strip = i / PIECES, piece = i % PIECES;
            if (strip < strips) {
                copy_16(stage + i * 16, weights + ((uint64_t)(first + strip) * groups + group) * Form::RECORD + piece * 16);
            }
        }
#endif
    }

    static __device__ __forceinline__ void copy_rows(const Int8Params& p, const Share& share, uint32_t base, uint32_t slot,
                                                     uint32_t group) {
        const uint32_t first = blockIdx.y * BM, count = share.rows - first < BM ? share.rows - first : BM;
        const uint32_t quants = base + slot * STAGE_BYTES + WEIGHT_BYTES, scales = quants + BM * QUANTS_PITCH;
        const int8_t* from = p.quants + (uint64_t)(share.first_row + first) * p.pitch + group * 256;
        const float* from_scales = p.scales + (uint64_t)(share.first_row + first) * (p.pitch / 32) + group * 8;
        static_assert(THREADS % 16 == 0 && THREADS >= 2 * BM, "a thread has pieces of one column of a row");
        const uint32_t own_row = threadIdx.x / 16, piece = threadIdx.x % 16 * 16;
        const int8_t* own = from + (uint64_t)own_row * p.pitch + piece;
#pragma unroll
        for (uint32_t i = 0; i < (BM * 16 + THREADS - 1) / THREADS; ++i) {
            const uint32_t row = own_row + i * (THREADS / 16);
            if (row < count) {
                copy_16(quants + row * QUANTS_PITCH + piece, own + (uint64_t)i * (THREADS / 16) * p.pitch);
            }
        }
        const uint32_t row = threadIdx.x / 2, half = threadIdx.x % 2;
        if (row < count) {
            copy_16(scales + row * SCALES_PITCH + half * 16, from_scales + (uint64_t)row * (p.pitch / 32) + half * 4);
        }
    }

    // Where a lane's share begins within a stage: rows for the matrix loads, scales of its rows, its warp's records.
    struct Place {
        uint32_t rows, scales, records;
        int lane, c;
    };

    static __device__ __forceinline__ Place place() {
        const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, first = warp / WN * MT * 16;
        const uint32_t row = EIGHT ? lane % 8 : first + lane % 16, piece = EIGHT ? lane / 8 : lane / 16;
        return {WEIGHT_BYTES + row * QUANTS_PITCH + piece * 16,
                WEIGHT_BYTES + BM * QUANTS_PITCH + (first + lane / 4) * SCALES_PITCH, warp % WN * NT * Form::RECORD, (int)lane,
                (int)lane % 4};
    }

    // One block of 32 inputs onto the chains.
    static __device__ __forceinline__ void fold(float (&sums)[MT][NT][VALUES], const uint8_t* stage, const Place& at,
                                                int block) {
        const int lane = at.lane, c = at.c;
        constexpr int PITCH = SCALES_PITCH / 4;
        const float* row_scales = reinterpret_cast<const float*>(stage + at.scales) + block;
        const uint32_t rows = shared_address(stage + at.rows) + block * 32;
        uint32_t a[MT][4];
        float scale[MT][2];
#pragma unroll
        for (int m = 0; m < MT; ++m) {
            if constexpr (EIGHT) {
                // The upper half of the lanes gives addresses that are not used.
                load_rows_8(a[m], rows);
            } else {
                load_rows_16(a[m], rows + m * 16 * QUANTS_PITCH);
            }
            scale[m][0] = row_scales[m * 16 * PITCH];
            scale[m][1] = EIGHT ? 0.0f : row_scales[(m * 16 + 8) * PITCH];
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
            const uint8_t* record = stage + at.records + n * Form::RECORD;
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

    // `BATCH` blocks onto the chains: everything is loaded, then all sums of integers are asked for, then come the chains.
    // Otherwise a block would wait for the one before.
    static __device__ __forceinline__ void fold_batch(float (&sums)[MT][NT][VALUES], const uint8_t* stage, const Place& at,
                                                      int block) {
        const int lane = at.lane, c = at.c;
        constexpr int PITCH = SCALES_PITCH / 4;
        const uint8_t* records = stage + at.records;
        const float* row_scales = reinterpret_cast<const float*>(stage + at.scales) + block;
        const uint32_t rows = shared_address(stage + at.rows) + block * 32;
        uint32_t a[BATCH][MT][4], b[BATCH][NT][2];
        if constexpr (EIGHT) {
#pragma unroll
            for (int i = 0; i < BATCH; i += 2) {
                uint32_t words[4];
                load_rows_8_wide(words, rows + i * 32);
                a[i][0][0] = words[0], a[i][0][2] = words[1], a[i + 1][0][0] = words[2], a[i + 1][0][2] = words[3];
                a[i][0][1] = a[i][0][3] = a[i + 1][0][1] = a[i + 1][0][3] = 0;
            }
        } else {
#pragma unroll
            for (int i = 0; i < BATCH; ++i) {
#pragma unroll
                for (int m = 0; m < MT; ++m) {
                    load_rows_16(a[i][m], rows + m * 16 * QUANTS_PITCH + i * 32);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
#pragma unroll
            for (int n = 0; n < NT; ++n) {
                Form::quants(records + n * Form::RECORD, block + i, lane, b[i][n][0], b[i][n][1]);
            }
        }
        int dots[BATCH][MT][NT][4], others[BATCH][MT][NT][4], of_rows[BATCH][MT][4];
        constexpr uint32_t ONE = 0x4b400000u;
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
#pragma unroll
            for (int m = 0; m < MT; ++m) {
#pragma unroll
                for (int n = 0; n < NT; ++n) {
                    if constexpr (Form::FOLD == Fold::Halves) {
                        multiply_16(dots[i][m][n], a[i][m][0], a[i][m][1], b[i][n][0], (int)Form::MAGIC);
                        multiply_16(others[i][m][n], a[i][m][2], a[i][m][3], b[i][n][1], (int)Form::MAGIC);
                    } else {
                        multiply_32(dots[i][m][n], a[i][m], b[i][n][0], b[i][n][1], (int)Form::MAGIC);
                    }
                }
                if constexpr (Form::FOLD == Fold::Minimum) {
                    multiply_32(of_rows[i][m], a[i][m], 0x01010101u, 0x01010101u, (int)ONE);
                }
            }
        }
        float scale[BATCH][MT][2];
        float2 weight[BATCH][NT];
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
#pragma unroll
            for (int m = 0; m < MT; ++m) {
                scale[i][m][0] = row_scales[m * 16 * PITCH + i];
                scale[i][m][1] = EIGHT ? 0.0f : row_scales[(m * 16 + 8) * PITCH + i];
            }
#pragma unroll
            for (int n = 0; n < NT; ++n) {
                weight[i][n] = Form::scales(records + n * Form::RECORD, block + i, c);
            }
        }
        const float magic = from_bits(Form::MAGIC);
#pragma unroll
        for (int i = 0; i < BATCH; ++i) {
#pragma unroll
            for (int n = 0; n < NT; ++n) {
                float2 low = {}, high = {}, minima = {};
                if constexpr (Form::FOLD == Fold::Halves) {
                    low = Form::own(records + n * Form::RECORD, block + i, 0, c);
                    high = Form::own(records + n * Form::RECORD, block + i, 1, c);
                } else if constexpr (Form::FOLD == Fold::Minimum) {
                    minima = Form::minima(records + n * Form::RECORD, block + i, c);
                }
#pragma unroll
                for (int m = 0; m < MT; ++m) {
#pragma unroll
                    for (int v = 0; v < VALUES; ++v) {
                        float& sum = sums[m][n][v];
                        float dot = __fsub_rn(__int_as_float(dots[i][m][n][v]), magic);
                        if constexpr (Form::FOLD == Fold::Halves) {
                            dot = __fmul_rn(dot, v % 2 == 0 ? low.x : low.y);
                            dot = fmaf(__fsub_rn(__int_as_float(others[i][m][n][v]), magic), v % 2 == 0 ? high.x : high.y, dot);
                        }
                        const float of_block = v % 2 == 0 ? weight[i][n].x : weight[i][n].y;
                        sum = fmaf(dot, __fmul_rn(scale[i][m][v / 2], of_block), sum);
                        if constexpr (Form::FOLD == Fold::Minimum) {
                            const float integers = __fsub_rn(__int_as_float(of_rows[i][m][v / 2 * 2]), from_bits(ONE));
                            sum = fmaf(__fmul_rn(scale[i][m][v / 2], integers), v % 2 == 0 ? minima.x : minima.y, sum);
                        }
                    }
                }
            }
        }
    }

    static __device__ __forceinline__ void store(const Int8Params& p, const float (&sums)[MT][NT][VALUES],
                                                 const Share& share) {
        const uint32_t lane = threadIdx.x % 32, warp_m = threadIdx.x / 32 / WN, warp_n = threadIdx.x / 32 % WN;
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
#ifdef POLYLINK_BULK
        if (threadIdx.x == 0) {
            for (int slot = 0; slot < STAGES; ++slot) {
                barrier_init(base + BARRIERS + slot * 8, 1);
            }
            barrier_init_fence();
        }
        __syncthreads();
#endif
        // Which matrix of several it is, an earlier kernel says.
        const bool several = gridDim.z > 1;
        const uint32_t ahead = groups < STAGES - 1 ? groups : STAGES - 1;
        for (uint32_t group = 0; !several && group < ahead; ++group) {
            copy_weights(p, p.weights, base, group, groups, group);
        }
        pdl_wait();
        const Share share = share_of(p.counts, p.rows, p.wanted, p.matrix_bytes);
        const uint8_t* weights = p.weights + share.weights;
        if (blockIdx.y * BM >= share.rows) {
            drain(base, several ? 0 : ahead);
            return;
        }
        for (uint32_t group = 0; group < STAGES - 1; ++group) {
            if (group < groups) {
                if (several) {
                    copy_weights(p, weights, base, group, groups, group);
                }
                copy_rows(p, share, base, group, group);
            }
            copies_commit();
        }
        const Place at = place();
        float sums[MT][NT][VALUES] = {}, totals[MT][NT][VALUES];
        // −0 leaves every sum that is added to it as it is.
        set(totals, -0.0f);
        uint32_t end = p.range_blocks, slot = 0, next = STAGES - 1, phase = 0;
#pragma unroll 1
        for (uint32_t group = 0; group < groups; ++group) {
#ifdef POLYLINK_BULK
            barrier_wait(base + BARRIERS + slot * 8, phase);
#endif
            copies_wait<STAGES - 2>();
            // All threads are done with the group before, whose place the next one takes.
            __syncthreads();
            if (group + STAGES - 1 < groups) {
                copy_weights(p, weights, base, next, groups, group + STAGES - 1);
                copy_rows(p, share, base, next, group + STAGES - 1);
            }
            copies_commit();
            const uint8_t* stage = shared + slot * STAGE_BYTES;
            const uint32_t begin = group * 8, count = p.blocks - begin < 8 ? p.blocks - begin : 8;
#pragma unroll 1
            for (uint32_t number = 0; number < count;) {
                if (SPLIT && begin + number == end) {
                    take(sums, totals);
                    end += p.range_blocks;
                }
                if (BATCH > 1 && number % BATCH == 0 && number + BATCH <= count && (!SPLIT || end - begin >= number + BATCH)) {
                    fold_batch(sums, stage, at, (int)number);
                    number += BATCH;
                } else if (BATCH == 1 && !SPLIT && number % 2 == 0 && number + 2 <= count) {
                    fold(sums, stage, at, (int)number);
                    fold(sums, stage, at, (int)number + 1);
                    number += 2;
                } else {
                    fold(sums, stage, at, (int)number);
                    ++number;
                }
            }
            next = slot;
            slot = slot + 1 == STAGES ? 0 : slot + 1;
            phase ^= slot == 0;
        }
        if constexpr (SPLIT) {
            take(sums, totals);
            store(p, totals, share);
        } else {
            store(p, sums, share);
        }
    }

    // Nothing may come into shared memory after the block has ended.
    static __device__ __forceinline__ void drain(uint32_t base, uint32_t stages) {
#ifdef POLYLINK_BULK
        for (uint32_t slot = 0; threadIdx.x == 0 && slot < stages; ++slot) {
            barrier_wait(base + BARRIERS + slot * 8, 0);
        }
#else
        copies_commit();
        copies_wait<0>();
#endif
    }

    static __device__ __forceinline__ void set(float (&values)[MT][NT][VALUES], float value) {
#pragma unroll
        for (int i = 0; i < MT * NT * VALUES; ++i) {
            values[i / (NT * VALUES)][i / VALUES % NT][i % VALUES] = value;
        }
    }

    // A range is complete.
    static __device__ __forceinline__ void take(float (&sums)[MT][NT][VALUES], float (&totals)[MT][NT][VALUES]) {
#pragma unroll
        for (int m = 0; m < MT; ++m) {
#pragma unroll
            for (int n = 0; n < NT; ++n) {
#pragma unroll
                for (int v = 0; v < VALUES; ++v) {
                    totals[m][n][v] = __fadd_rn(totals[m][n][v], sums[m][n][v]);
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
        POLYLINK_DYNAMIC_SHARED(uint8_t, shared);\
        polylink::exact::Int8Tile<polylink::exact::Form, MT, NT, WM, WN, EIGHT, SPLIT, STAGES>::run(p, shared);              \
    }

// All shapes of tile, for a form; kernels/src/cuda/exact/int8.rs chooses.
#define POLYLINK_INT8_KERNELS(Form)                                              \
    POLYLINK_INT8_KERNEL(rows_8_by_16, Form, 1, 1, 1, 2, true, true, 8)          \
    POLYLINK_INT8_KERNEL(rows_8_by_32, Form, 1, 1, 1, 4, true, true, 8)          \
    POLYLINK_INT8_KERNEL(rows_16_by_16, Form, 1, 1, 1, 2, false, true, 8)        \
    POLYLINK_INT8_KERNEL(rows_16_by_32, Form, 1, 1, 1, 4, false, true, 8)        \
    POLYLINK_INT8_KERNEL(rows_64_by_32, Form, 2, 2, 2, 2, false, true, 4)        \
    POLYLINK_INT8_KERNEL(rows_64_by_16, Form, 2, 1, 2, 2, false, true, 4)        \
    POLYLINK_INT8_KERNEL(rows_64_by_64, Form, 2, 4, 2, 2, false, true, 3)        \
    POLYLINK_INT8_KERNEL(rows_128_by_128, Form, 2, 4, 4, 4, false, false, 3)     \
    POLYLINK_INT8_KERNEL(rows_128_by_128_tall, Form, 4, 4, 2, 4, false, false, 3)     \
    POLYLINK_INT8_KERNEL(rows_128_by_128_split, Form, 2, 4, 4, 4, false, true, 3)
