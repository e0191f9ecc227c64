// Attention over a paged cache of bf16, on tensor cores (mma.sync m16n8k16): prefill and decode by one family.
//
// Order of sums of one query row, whatever else is computed beside it:
//   * Keys are split at multiples of 256 absolute positions. Within a split, steps of 64 keys ascending: scores are chains of
//     mma over 16 values of the head each, ascending; the running maximum m of the row moves by step; p = ex2(score - m);
//     p is rounded to bf16 (nearest even); the row's sum l (as the products with a column of ones) and its values O are
//     chains of mma over 16 keys each, ascending; both are multiplied by ex2(m_before - m) where m has moved.
//   * Splits are folded ascending by `Fold`, each begun from nothing: so it does not matter whether one block computes them one
//     after the other or many blocks each theirs, which leave (O, m, l) in memory for the last of them to fold.
//   * Masked keys have p = 0 and are read as zeros where they may be unwritten: they change no bit. A step that a row does not
//     see leaves the row as it is.
// Scores are kept in units of log2: score x scale x log2 e in one product (f32), with a soft cap
// cap x log2 e x (1 - 2 / (ex2(2 x scale / cap x log2 e x score) + 1)). ex2 is the device's ex2.approx.ftz, 2 / x its rcp.approx.ftz:
// the same bits on every device of one kind, at most 2 units of the last place off.
//
// A block has row_warps x dim_warps warps: row_warps tiles of 16 query rows (token x query head of the group), each by
// dim_warps warps, which all compute the scores and share out the values' dimensions. Shared memory holds the rows of queries
// and a ring of steps (64 keys and their values), every row padded by 16 bytes, so that ldmatrix meets each bank once.
#pragma once

#include "attention_tools.cuh"
#include "common.cuh"
#include "kv_layout.cuh"

namespace polylink {

constexpr uint32_t ATTENTION_SPLIT = 256;
constexpr uint32_t ATTENTION_STEP = 64;
constexpr uint32_t STEPS_PER_SPLIT = ATTENTION_SPLIT / ATTENTION_STEP;
constexpr uint32_t PLAN_HEADER_WORDS = 8;
constexpr uint32_t NO_PARTIALS = 0xffffffffu;

// Mirrored by kernels/src/cuda/attention.rs.
struct AttentionParams {
    const uint16_t* query;         // bf16 [rows][query_heads][D]
    const uint16_t* cache;         // kv_layout.cuh
    const uint32_t* plan;          // header, then items
    const uint32_t* block_tables;
    void* output;                  // [rows][query_heads x D] in output_form
    float* partial_values;         // [partial rows][kv_heads][D]
    float2* partial_folds;         // [partial rows][kv_heads]: maximum, sum
    uint32_t* arrivals;            // [partial rows][kv_heads], 0 between launches
    uint32_t query_heads;
    uint32_t kv_heads;
    uint32_t layer;
    uint32_t layers;
    uint32_t window;               // positions seen, 0xffffffff: all
    uint32_t output_form;          // RowForm: F32 or Bf16Tiled
    uint32_t row_capacity;         // of a tiled output
    uint32_t wide;                 // which of the plan's two lists: 0 narrow tiles, 1 wide ones
    float scale_log2;              // scale x log2 e
    float cap_log2;                // cap x log2 e
    float cap_slope;               // 2 x scale / cap x log2 e
    uint32_t spare;
};

// One piece of a tile: some of its splits.
struct AttentionItem {
    uint32_t first_row;       // of the sequence, in the step
    uint32_t first_flat;      // of the tile: token of the sequence's rows x group + head of the group
    uint32_t first_position;  // of the sequence's first row
    uint32_t table_start;
    uint32_t splits;          // of the piece: begin | end << 16
    uint32_t tile_splits;     // of the tile
    uint32_t counts;          // rows of the tile | pieces of the tile << 16
    uint32_t partials;        // first partial row of the tile, or NO_PARTIALS: the piece is the whole tile
};

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }

// The running total of a row over its splits: maximum and sum; the values go along by `before` and `now`.
struct Fold {
    float maximum, sum;
    float before, now;

    __device__ __forceinline__ void begin() {
        maximum = minus_infinity();
        sum = 0.0f;
    }
    __device__ __forceinline__ void take(float split_maximum, float split_sum) {
        float next = fmaxf(maximum, split_maximum);
        float base = next == minus_infinity() ? 0.0f : next;
        before = fast_ex2(__fsub_rn(maximum, base));
        now = fast_ex2(__fsub_rn(split_maximum, base));
        sum = fmaf(sum, before, __fmul_rn(split_sum, now));
        maximum = next;
    }
    __device__ __forceinline__ float value(float total, float split) const {
        return fmaf(total, before, __fmul_rn(split, now));
    }
    // Adding 0 leaves no -0 that would tell which masked keys were met.
    __device__ __forceinline__ static float finish(float total, float inverse) {
        return __fadd_rn(__fmul_rn(total, inverse), 0.0f);
    }
    __device__ __forceinline__ float inverse() const { return __fdiv_rn(1.0f, sum); }
};

// First position that a row at `position` sees.
__device__ __forceinline__ uint32_t window_begin(uint32_t position, uint32_t window) {
    return position >= window ? position - window + 1 : 0;
}

// Stores two or four neighbouring values of an output row of `width`.
template <int COUNT>
__device__ __forceinline__ void store_output(const AttentionParams& p, uint32_t width, uint32_t row, uint32_t column,
                                             const float (&v)[COUNT]) {
    static_assert(COUNT == 2 || COUNT == 4, "pairs or fours");
    if (p.output_form == (uint32_t)RowForm::F32) {
        float* at = (float*)p.output + (uint64_t)row * width + column;
        if constexpr (COUNT == 2) {
            *(float2*)at = make_float2(v[0], v[1]);
        } else {
            *(float4*)at = make_float4(v[0], v[1], v[2], v[3]);
        }
    } else {
        uint8_t* at = (uint8_t*)p.output + tiled_offset(row, column, p.row_capacity);
        if constexpr (COUNT == 2) {
            *(uint32_t*)at = pack_bf16(v[0], v[1]);
        } else {
            *(uint2*)at = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
        }
    }
}

constexpr uint32_t BF16_ONES = 0x3f803f80u;

// The keys of a piece and its steps.
struct AttentionSpan {
    uint32_t flats, key_begin, key_end, first_step, steps;
};

__device__ __forceinline__ AttentionSpan attention_span(const AttentionParams& p, uint32_t first_flat, uint32_t first_position,
                                                        uint32_t splits, uint32_t counts) {
    AttentionSpan span;
    span.flats = counts & 0xffff;
    const uint32_t group = p.query_heads / p.kv_heads;
    span.key_begin = window_begin(first_position + first_flat / group, p.window);
    span.key_end = first_position + (first_flat + span.flats - 1) / group + 1;
    span.first_step = max((splits & 0xffff) * STEPS_PER_SPLIT, span.key_begin / ATTENTION_STEP);
    const uint32_t end = min((splits >> 16) * STEPS_PER_SPLIT, (span.key_end + ATTENTION_STEP - 1) / ATTENTION_STEP);
    span.steps = end > span.first_step ? end - span.first_step : 0;
    return span;
}

// Four neighbours of an array in registers, `first` being known when it is compiled.
template <int N>
__device__ __forceinline__ float (&four_of(float (&s)[N], int first))[4] {
    return *reinterpret_cast<float(*)[4]>(&s[first]);
}

// Scores of 16 x 64 keys, of which a thread holds 32: s[4 j + i] is that of row lane / 4 + 8 (i / 2) with key 8 j + 2 (lane % 4) +
// i % 2. With a soft cap they become capped ones, in units of log2.
template <bool CAP, int N>
__device__ __forceinline__ void cap_scores(const AttentionParams& p, float (&s)[N]) {
    if constexpr (CAP) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const float e = fast_ex2(__fmul_rn(s[i], p.cap_slope));
            s[i] = fmaf(__fmul_rn(-2.0f, p.cap_log2), fast_reciprocal(__fadd_rn(e, 1.0f)), p.cap_log2);
        }
    }
}

// The highest score of the thread's row 0 or 1, among those of all lanes that hold the row.
template <int N>
__device__ __forceinline__ float highest_of(const float (&s)[N], int row) {
    float highest = minus_infinity();
#pragma unroll
    for (int i = 0; i < N / 4; ++i) {
        highest = fmaxf(highest, fmaxf(s[4 * i + 2 * row], s[4 * i + 2 * row + 1]));
    }
    highest = fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 1));
    return fmaxf(highest, __shfl_xor_sync(0xffffffffu, highest, 2));
}

// Moves a row's running maximum over a step's highest score; `base`: what is subtracted from the step's scores, `shrink`: what
// the split's sums so far are multiplied by.
template <bool CAP>
__device__ __forceinline__ void move_maximum(const AttentionParams& p, float highest, float& maximum, float& base,
                                             float& shrink) {
    const float next = fmaxf(maximum, CAP ? highest : __fmul_rn(highest, p.scale_log2));
    base = next == minus_infinity() ? 0.0f : next;
    shrink = fast_ex2(__fsub_rn(maximum, base));
    maximum = next;
}

// Makes weights of the scores of the thread's two rows.
template <bool CAP, int N>
__device__ __forceinline__ void weights_of(const AttentionParams& p, float (&s)[N], const float (&base)[2]) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const float b = base[i % 4 / 2];
        s[i] = fast_ex2(CAP ? __fsub_rn(s[i], b) : fmaf(s[i], p.scale_log2, -b));
    }
}

// Moves the running maxima of the thread's two rows over a step, and makes weights of the scores.
template <bool CAP>
__device__ __forceinline__ void weigh(const AttentionParams& p, float (&s)[ATTENTION_STEP / 2], float (&maximum)[2],
                                      float (&shrink)[2]) {
    float base[2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        move_maximum<CAP>(p, highest_of(s, row), maximum[row], base[row], shrink[row]);
    }
    weights_of<CAP>(p, s, base);
}

// The weights as the left operand of the products with the values, rounded to bf16.
__device__ __forceinline__ void pack_weights(const float (&s)[ATTENTION_STEP / 2], uint32_t (&weights)[ATTENTION_STEP / 16][4]) {
#pragma unroll
    for (int i = 0; i < (int)ATTENTION_STEP / 4; ++i) {
        weights[i / 4][i % 4] = pack_bf16(s[2 * i], s[2 * i + 1]);
    }
}

}  // namespace polylink
