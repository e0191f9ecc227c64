// Attention by mma.sync: one tile, or some of its splits; attention_bf16.cuh says what is computed, and in which order.
#pragma once

#include "attention_rows.cuh"

namespace polylink {

// STAGES: steps of keys and values in shared memory. KEPT: of the queries' D / 16 pieces, so many stay in registers.
template <int D, int ROW_WARPS, int DIM_WARPS, int STAGES, int KEPT, bool CAP>
struct Attention : AttentionRows<D, ROW_WARPS, DIM_WARPS, CAP, Keep::Registers> {
    using Rows = AttentionRows<D, ROW_WARPS, DIM_WARPS, CAP, Keep::Registers>;
    using Rows::active;
    using Rows::dim_warp;
    using Rows::first_step;
    using Rows::flats;
    using Rows::group;
    using Rows::head;
    using Rows::item;
    using Rows::lane;
    using Rows::p;
    using Rows::row_warp;
    using Rows::ROWS;
    using Rows::STEP;
    using Rows::steps;
    using Rows::THREADS;
    using Rows::warp_high;
    using Rows::warp_low;
    static constexpr int CHUNKS = D / 8;  // 16-byte pieces of a row
    static constexpr int PITCH = 2 * D + 16;
    static constexpr int QUERY_BYTES = ROWS * PITCH;
    static constexpr int HALF_BYTES = STEP * PITCH;  // the keys, or the values, of a step
    static constexpr int DEPTHS = D / 16;            // mma of a score

    uint32_t shared;
    uint32_t key_begin, key_end;
    uint32_t blocks[2];  // of the step that is loaded next
    uint32_t query[KEPT][4];

    __device__ __forceinline__ Attention(const AttentionParams& params, uint32_t shared_base, const AttentionItem& piece)
        : Rows(params, piece, nullptr, threadIdx.x), shared(shared_base) {}

    __device__ __forceinline__ void open(uint32_t kv_head) {
        Rows::open(kv_head);
        const AttentionSpan own = this->span();
        key_begin = own.key_begin;
        key_end = own.key_end;
        if (steps > 0) {
            find_blocks(0);
        }
    }

    // Entries of the table for a step; the second one may lie beyond the last key.
    __device__ __forceinline__ void find_blocks(uint32_t step) {
        const uint32_t entry = (first_step + step) * (STEP / KV_BLOCK_TOKENS);
        const uint32_t* table = p.block_tables + item.table_start;
        blocks[0] = __ldg(table + entry);
        blocks[1] = __ldg(table + min(entry + 1, (key_end - 1) / KV_BLOCK_TOKENS));
    }

    __device__ __forceinline__ void load_query() {
#pragma unroll
        for (int i = 0; i < (ROWS * CHUNKS + THREADS - 1) / THREADS; ++i) {
            const uint32_t index = threadIdx.x + i * THREADS;
            const uint32_t row = index / CHUNKS, chunk = index % CHUNKS;
            if (ROWS * CHUNKS % THREADS == 0 || row < ROWS) {
                const bool there = row < flats;
                const uint32_t flat = item.first_flat + (there ? row : 0), g = group();
                const uint64_t at = (uint64_t)(item.first_row + flat / g) * p.query_heads + head * g + flat % g;
                copy_async(shared + row * PITCH + chunk * 16, p.query + at * D + chunk * 8, there ? 16 : 0);
            }
        }
    }

    // Starts the copies of a step's keys and values; what no row of the tile sees becomes zeros.
    __device__ __forceinline__ void load_step(uint32_t step, uint32_t stage) {
        const KvShape shape = {p.layers, p.kv_heads, D};
        const uint16_t* first = p.cache + kv_start(shape, blocks[0], p.layer, 0, head);
        const uint16_t* second = p.cache + kv_start(shape, blocks[1], p.layer, 0, head) - KV_BLOCK_TOKENS * D;
        const uint64_t to_values = (uint64_t)p.kv_heads * KV_BLOCK_TOKENS * D;
        const uint32_t key = (first_step + step) * STEP;
        const uint32_t to = shared + QUERY_BYTES + stage * 2 * HALF_BYTES;
#pragma unroll
        for (int i = 0; i < (STEP * CHUNKS + THREADS - 1) / THREADS; ++i) {
            const uint32_t index = threadIdx.x + i * THREADS;
            const uint32_t row = index / CHUNKS, chunk = index % CHUNKS;
            if (STEP * CHUNKS % THREADS == 0 || row < STEP) {
                const uint16_t* from = (row < KV_BLOCK_TOKENS ? first : second) + index * 8;
                const uint32_t bytes = key + row - key_begin < key_end - key_begin ? 16 : 0;
                const uint32_t at = to + row * PITCH + chunk * 16;
                copy_async(at, from, bytes);
                copy_async(at + HALF_BYTES, from + to_values, bytes);
            }
        }
        if (step + 1 < steps) {
            find_blocks(step + 1);
        }
    }

    __device__ __forceinline__ uint32_t query_address(int depth) const {
        return shared + (row_warp * 16 + lane % 16) * PITCH + (lane / 16) * 16 + depth * 32;
    }

    // One step of 64 keys for the warp's 16 rows.
    __device__ __forceinline__ void compute(uint32_t step, uint32_t stage) {
        const uint32_t key = (first_step + step) * STEP;
        if (!active || key > warp_high || key + STEP - 1 < window_begin(warp_low, p.window)) {
            return;  // nothing that a row of the warp sees
        }
        const uint32_t keys = shared + QUERY_BYTES + stage * 2 * HALF_BYTES;
        float s[STEP / 2];
#pragma unroll
        for (int i = 0; i < STEP / 2; ++i) {
            s[i] = 0.0f;
        }
        const uint32_t key_address = keys + (lane % 8 + lane / 16 * 8) * PITCH + lane / 8 % 2 * 16;
#pragma unroll
        for (int depth = 0; depth < DEPTHS; ++depth) {
            uint32_t loaded[4];
            if (depth >= KEPT) {
                load_matrices(loaded, query_address(depth));
            }
            const uint32_t(&a)[4] = depth < KEPT ? query[depth < KEPT ? depth : 0] : loaded;
#pragma unroll
            for (int sixteen = 0; sixteen < STEP / 16; ++sixteen) {
                uint32_t b[4];
                load_matrices(b, key_address + sixteen * 16 * PITCH + depth * 32);
                mma_bf16(four_of(s, 8 * sixteen), a, b[0], b[1]);
                mma_bf16(four_of(s, 8 * sixteen + 4), a, b[2], b[3]);
            }
        }
        cap_scores<CAP>(p, s);
        if (this->hides(key)) {
            this->mask(s, key);
        }
        float shrink[2];
        uint32_t weights[STEP / 16][4];
        weigh<CAP>(p, s, this->maximum, shrink);
        pack_weights(s, weights);
        this->shrink_by(shrink);
        const uint32_t value_address = keys + HALF_BYTES + lane % 16 * PITCH + lane / 16 * 16;
#pragma unroll
        for (int sixteen = 0; sixteen < STEP / 16; ++sixteen) {
            mma_bf16(this->sums, weights[sixteen], BF16_ONES, BF16_ONES);
#pragma unroll
            for (int pair = 0; pair < Rows::PAIRS; ++pair) {
                const uint32_t dims = dim_warp + pair * DIM_WARPS;
                if (D / 16 % DIM_WARPS == 0 || dims < D / 16) {
                    uint32_t b[4];
                    load_matrices_turned(b, value_address + sixteen * 16 * PITCH + dims * 32);
                    mma_bf16(this->values[pair][0], weights[sixteen], b[0], b[1]);
                    mma_bf16(this->values[pair][1], weights[sixteen], b[2], b[3]);
                }
            }
        }
    }

    // Starts the copies of the first steps.
    __device__ __forceinline__ void load_first() {
#pragma unroll
        for (int step = 0; step < STAGES - 1; ++step) {
            if (step < (int)steps) {
                load_step(step, step);
            }
            copies_commit();
        }
    }

    // Whether earlier steps have written all keys of the first copies.
    __device__ __forceinline__ bool first_are_old() const {
        return min((first_step + STAGES - 1) * STEP, key_end) <= item.first_position;
    }

    // The opened piece, its first copies under way and those of its queries committed last.
    __device__ __forceinline__ void run() {
        this->begin_tile();
        uint32_t stage = 0;
        for (uint32_t step = 0; step < steps; ++step) {
            if (step == 0) {
                copies_wait<0>();
            } else {
                copies_wait<STAGES - 2>();
            }
            __syncthreads();  // the step has come for all, and the stage before it is free
            if (step + STAGES - 1 < steps) {
                load_step(step + STAGES - 1, stage == 0 ? STAGES - 1 : stage - 1);
            }
            copies_commit();
            if (step == 0) {
#pragma unroll
                for (int depth = 0; depth < KEPT; ++depth) {
                    load_matrices(query[depth], query_address(depth));
                }
            }
            compute(step, stage);
            const uint32_t absolute = first_step + step;
            if (absolute % STEPS_PER_SPLIT == STEPS_PER_SPLIT - 1 || step + 1 == steps) {
                this->end_split(absolute / STEPS_PER_SPLIT);
            }
            stage = stage + 1 == STAGES ? 0 : stage + 1;
        }
        this->end_piece();
    }
};

}  // namespace polylink
