// Some splits of one tile of attention, as its threads hold them: what the kernels of all devices have in common.
#pragma once

#include "attention_bf16.cuh"

namespace polylink {

// Where a block's warps keep the words of their piece, and the totals over splits.
enum class Keep {
    Registers,     // totals in registers, the piece in shared memory; the block has no other warps
    SharedTotals,  // totals and piece in shared memory; the block has other warps
    Piece,         // totals and piece in registers; the block has other warps
};

template <Keep KEEP>
struct PieceWords {
    volatile const AttentionItem& item;  // rarely needed
    __device__ __forceinline__ PieceWords(const AttentionItem& piece) : item(piece) {}
};

template <>
struct PieceWords<Keep::Piece> {
    AttentionItem item;
    __device__ __forceinline__ PieceWords(const AttentionItem&) {}
};

// D: values of a head. ROW_WARPS x 16 query rows in a tile, DIM_WARPS warps for each 16. Where the block has other warps too, these
// meet at barrier 1. Totals in shared memory: 16 bytes of a thread beside those of the next, [PAIRS x 2][THREADS].
template <int D, int ROW_WARPS, int DIM_WARPS, bool CAP, Keep KEEP>
struct AttentionRows : PieceWords<KEEP> {
    using PieceWords<KEEP>::item;
    static constexpr bool PART = KEEP != Keep::Registers;
    static constexpr bool SHARED_TOTALS = KEEP == Keep::SharedTotals;
    static constexpr int THREADS = 32 * ROW_WARPS * DIM_WARPS;
    static constexpr int ROWS = 16 * ROW_WARPS;
    static constexpr int STEP = ATTENTION_STEP;
    static constexpr int PAIRS = (D / 16 + DIM_WARPS - 1) / DIM_WARPS;  // groups of 16 dimensions of a warp

    const AttentionParams& p;
    // The thread's place: lane / 4 is its row (and the one 8 below), 2 x (lane % 4) its column.
    uint32_t thread, lane, row_warp, dim_warp;
    uint32_t head, flats, first_step, steps;
    uint32_t warp_low, warp_high;  // positions of the warp's first and last row
    bool active;                   // the warp has rows
    // State of the split under way, and of the splits before.
    float values[PAIRS][2][4];
    float sums[4];
    float maximum[2];
    float totals[SHARED_TOTALS ? 1 : PAIRS][2][4];
    float4* shared_totals;
    bool fresh;  // the tile has no totals yet
    Fold fold[2];

    __device__ __forceinline__ AttentionRows(const AttentionParams& params, const AttentionItem& piece, float4* kept, uint32_t own)
        : PieceWords<KEEP>(piece), p(params), shared_totals(kept), thread(own), lane(own % 32), row_warp(own / 32 % ROW_WARPS), dim_warp(own / 32 / ROW_WARPS) {}

    __device__ __forceinline__ static void meet() {
        if constexpr (PART) {
            meet_at_1<THREADS>();
        } else {
            __syncthreads();
        }
    }

    __device__ __forceinline__ uint32_t group() const { return p.query_heads / p.kv_heads; }

    __device__ __forceinline__ AttentionSpan span() const {
        return attention_span(p, item.first_flat, item.first_position, item.splits, item.counts);
    }

    // Takes over the piece in shared memory, for one head.
    __device__ __forceinline__ void open(uint32_t kv_head) {
        head = kv_head;
        const AttentionSpan own = span();
        flats = own.flats;
        first_step = own.first_step;
        steps = own.steps;
        const uint32_t row = row_warp * 16;
        active = row < flats;
        warp_low = item.first_position + (item.first_flat + row) / group();
        warp_high = item.first_position + (item.first_flat + min(row + 15, flats - 1)) / group();
    }

    // Whether keys of a step are hidden from some row of the warp.
    __device__ __forceinline__ bool hides(uint32_t key) const {
        return key + STEP - 1 > warp_low || key < window_begin(warp_high, p.window);
    }

    // Hides the keys, from `key` on, that the thread's rows do not see.
    template <int N>
    __device__ __forceinline__ void mask(float (&s)[N], uint32_t key) const {
        const uint32_t flat = item.first_flat + row_warp * 16 + lane / 4;
        const uint32_t position[2] = {item.first_position + flat / group(), item.first_position + (flat + 8) / group()};
        const uint32_t low[2] = {window_begin(position[0], p.window), window_begin(position[1], p.window)};
#pragma unroll
        for (int i = 0; i < N; ++i) {
            const uint32_t at = key + i / 4 * 8 + lane % 4 * 2 + i % 2;
            const int row = i % 4 / 2;
            if (at > position[row] || at < low[row]) {
                s[i] = minus_infinity();
            }
        }
    }

    __device__ __forceinline__ void begin_split() {
#pragma unroll
        for (int pair = 0; pair < PAIRS; ++pair) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                values[pair][i / 4][i % 4] = 0.0f;
            }
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            sums[i] = 0.0f;
        }
        maximum[0] = maximum[1] = minus_infinity();
    }

    __device__ __forceinline__ void begin_tile() {
        fresh = true;
        fold[0].begin();
        fold[1].begin();
        begin_split();
    }

    // The tile's totals of a group of 8 dimensions.
    __device__ __forceinline__ float4 total(int eight) const {
        if (fresh) {
            return make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
        if constexpr (SHARED_TOTALS) {
            return shared_totals[eight * THREADS + thread];
        } else {
            const float(&t)[4] = totals[eight / 2][eight % 2];
            return make_float4(t[0], t[1], t[2], t[3]);
        }
    }

    __device__ __forceinline__ void fold_total(int eight) {
        const float(&v)[4] = values[eight / 2][eight % 2];
        float4 t = total(eight);
        t.x = fold[0].value(t.x, v[0]);
        t.y = fold[0].value(t.y, v[1]);
        t.z = fold[1].value(t.z, v[2]);
        t.w = fold[1].value(t.w, v[3]);
        if constexpr (SHARED_TOTALS) {
            shared_totals[eight * THREADS + thread] = t;
        } else {
            float(&to)[4] = totals[eight / 2][eight % 2];
            to[0] = t.x;
            to[1] = t.y;
            to[2] = t.z;
            to[3] = t.w;
        }
    }

    // Multiplies what the split has so far. Times 1 changes nothing, so the whole warp may leave it out; not where products
    // under way own the registers, which must not be changed on one path alone.
    __device__ __forceinline__ void shrink_by(const float (&shrink)[2]) {
        if (SHARED_TOTALS || __any_sync(0xffffffffu, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
#pragma unroll
            for (int pair = 0; pair < PAIRS; ++pair) {
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    values[pair][i / 4][i % 4] = __fmul_rn(values[pair][i / 4][i % 4], shrink[i % 4 / 2]);
                }
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                sums[i] = __fmul_rn(sums[i], shrink[i / 2]);
            }
        }
    }

    // The split is complete: folds it, or leaves it in memory.
    __device__ __forceinline__ void end_split(uint32_t split) {
        if (active) {
            leave_split(split);
        }
        maximum[0] = maximum[1] = minus_infinity();  // so that what the next split begins with is shrunk to 0
    }

    __device__ __forceinline__ void leave_split(uint32_t split) {
        if (item.partials == NO_PARTIALS) {
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                fold[row].take(maximum[row], sums[2 * row]);
            }
#pragma unroll
            for (int eight = 0; eight < 2 * PAIRS; ++eight) {
                fold_total(eight);
            }
            fresh = false;
        } else {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const uint32_t row = row_warp * 16 + lane / 4 + 8 * half;
                if (row < flats) {
                    const uint32_t partial = item.partials + (split - (item.tile_splits & 0xffff)) * flats + row;
                    const uint64_t at = (uint64_t)partial * p.kv_heads + head;
                    if (dim_warp == 0 && lane % 4 == 0) {
                        p.partial_folds[at] = make_float2(maximum[half], sums[2 * half]);
                    }
#pragma unroll
                    for (int i = 0; i < 2 * PAIRS; ++i) {
                        const uint32_t dims = dim_warp + i / 2 * DIM_WARPS;
                        if (D / 16 % DIM_WARPS == 0 || dims < D / 16) {
                            float* to = p.partial_values + at * D + dims * 16 + i % 2 * 8 + lane % 4 * 2;
                            *(float2*)to = make_float2(values[i / 2][i % 2][2 * half], values[i / 2][i % 2][2 * half + 1]);
                        }
                    }
                }
            }
        }
    }

    // Step and column of the output for a row of the tile.
    __device__ __forceinline__ void place(uint32_t row, uint32_t& step_row, uint32_t& column) const {
        const uint32_t flat = item.first_flat + row, g = group();
        step_row = item.first_row + flat / g;
        column = (head * g + flat % g) * D;
    }

    __device__ __forceinline__ void store_tile() {
        if (!active) {
            return;
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t row = row_warp * 16 + lane / 4 + 8 * half;
            if (row < flats) {
                uint32_t step_row, column;
                place(row, step_row, column);
                const float inverse = fold[half].inverse();
#pragma unroll
                for (int i = 0; i < 2 * PAIRS; ++i) {
                    const uint32_t dims = dim_warp + i / 2 * DIM_WARPS;
                    if (D / 16 % DIM_WARPS == 0 || dims < D / 16) {
                        const float4 t = total(i);
                        const float two[2] = {Fold::finish(half == 0 ? t.x : t.z, inverse),
                                              Fold::finish(half == 0 ? t.y : t.w, inverse)};
                        store_output(p, p.query_heads * D, step_row, column + dims * 16 + i % 2 * 8 + lane % 4 * 2, two);
                    }
                }
            }
        }
    }

    // The block that arrives last folds the splits of the tile, ascending.
    __device__ __forceinline__ void arrive() {
        __shared__ uint32_t last;
        meet();  // what the block's threads have left is released by the one that arrives for them
        if (thread == 0) {
            uint32_t* counter = p.arrivals + (uint64_t)item.partials * p.kv_heads + head;
            last = arrive_at(counter) + 1 == item.counts >> 16;
            if (last) {
                *counter = 0;
            }
        }
        meet();
        if (last) {
            fold_splits();
        }
    }

    __device__ __forceinline__ void fold_splits() {
        constexpr int VALUES = ROW_WARPS == 1 ? 2 : 4;  // of a row, to a thread
        constexpr int AT_ONCE = PART && ROW_WARPS == 1 ? 8 : CAP ? 2 : 4;  // splits whose loads are under way
        constexpr uint32_t COLUMNS = D / VALUES;
        const uint32_t tile_begin = item.tile_splits & 0xffff;
        const AttentionSpan own_span = span();
        const uint32_t begin = max(tile_begin, own_span.key_begin / ATTENTION_SPLIT);
        const uint32_t end = min(item.tile_splits >> 16, (own_span.key_end + ATTENTION_SPLIT - 1) / ATTENTION_SPLIT);
        const uint64_t next = (uint64_t)flats * p.kv_heads;  // partial row of the split after
        for (uint32_t index = thread; index < flats * COLUMNS; index += THREADS) {
            const uint32_t row = index / COLUMNS, column = index % COLUMNS * VALUES;
            uint64_t at = (uint64_t)(item.partials + (begin - tile_begin) * flats + row) * p.kv_heads + head;
            Fold own;
            own.begin();
            float total[VALUES] = {};
            for (uint32_t split = begin; split < end; split += AT_ONCE) {
                float2 with[AT_ONCE];
                float v[AT_ONCE][VALUES];
#pragma unroll
                for (int i = 0; i < AT_ONCE; ++i) {
                    if (split + i < end) {
                        with[i] = __ldcg(p.partial_folds + at);
                        const float* from = p.partial_values + at * D + column;
                        if constexpr (VALUES == 2) {
                            *(float2*)v[i] = __ldcg((const float2*)from);
                        } else {
                            *(float4*)v[i] = __ldcg((const float4*)from);
                        }
                    }
                    at += next;
                }
#pragma unroll
                for (int i = 0; i < AT_ONCE; ++i) {
                    if (split + i < end) {
                        own.take(with[i].x, with[i].y);
#pragma unroll
                        for (int j = 0; j < VALUES; ++j) {
                            total[j] = own.value(total[j], v[i][j]);
                        }
                    }
                }
            }
            const float inverse = own.inverse();
#pragma unroll
            for (int j = 0; j < VALUES; ++j) {
                total[j] = Fold::finish(total[j], inverse);
            }
            uint32_t step_row, first_column;
            place(row, step_row, first_column);
            store_output(p, p.query_heads * D, step_row, first_column + column, total);
        }
    }

    // The piece is complete.
    __device__ __forceinline__ void end_piece() {
        if (item.partials == NO_PARTIALS) {
            store_tile();
        } else {
            arrive();
        }
    }
};

}  // namespace polylink
