// One tile of attention over a cache of e4m3, or some of its splits: what attention_bf16_tile.cuh computes, of the values that the
// cache stands for, each of which bf16 holds exactly. So the bits are those of the same values in a cache of bf16.
//
// Numbers lie in pairs (kv_layout.cuh): a word that ldmatrix gives a thread, of a key as it lies and of a value turned, has the
// lower operand of a product in its even bytes and the higher one in its odd bytes. Both become bf16 in registers: moved to
// their places in a bf16's bits they are 2^-120 of what they should be, denormal ones too, and one multiplication brings them up
// together with the power of two of their key or value. Queries are read as f32, and rounded here.
#pragma once

#include "attention_rows.cuh"

namespace polylink {

// 2^120 times a key's or value's power of two, as bf16, in the low half. What was never written gives a number too.
__device__ __forceinline__ uint32_t widening_factor(uint32_t scale) {
    return (min(scale & 0x7f800000u, 134u << 23) >> 16) + (120u << 7);
}

// Those of the powers of two at an address of shared memory and so many bytes after it, as two halves.
__device__ __forceinline__ uint32_t two_factors(uint32_t address, uint32_t apart) {
    return widening_factor(load_shared(address)) | widening_factor(load_shared(address + apart)) << 16;
}

struct Widened {
    uint32_t even, odd;
};

// The even and the odd bytes of a word as two bf16 each, times the factor of their half.
__device__ __forceinline__ Widened widened(uint32_t word, uint32_t factors) {
    const uint32_t even = (word << 8 & 0x80008000u) | (word << 4 & 0x07f007f0u);
    const uint32_t odd = (word & 0x80008000u) | (word >> 4 & 0x07f007f0u);
    return {multiply_bf16(even, factors), multiply_bf16(odd, factors)};
}

// As `Attention` in attention_bf16_tile.cuh.
template <int D, int ROW_WARPS, int DIM_WARPS, int STAGES, int KEPT, bool CAP>
struct AttentionFp8 : AttentionRows<D, ROW_WARPS, DIM_WARPS, CAP, Keep::Registers> {
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
    static constexpr int CHUNKS = D / 16;                     // 16-byte pieces of a key or value, and mma of a score
    static constexpr int PITCH = CHUNKS % 2 == 1 ? D : D + 16;  // so that ldmatrix meets each bank once
    static constexpr int SCALES = STEP * PITCH;               // of the keys, or the values, of a step: [STEP] f32
    static constexpr int HALF_BYTES = SCALES + STEP * 4;
    static constexpr int QUERY_PITCH = 2 * D + 16;
    static constexpr int QUERY_BYTES = ROWS * QUERY_PITCH;
    static_assert(D % 16 == 0 && THREADS >= 32, "rows of whole pieces; a warp copies the scales");

    uint32_t shared;
    uint32_t key_begin, key_end;
    uint32_t blocks[2];  // of the step that is loaded next
    uint32_t query[KEPT > 0 ? KEPT : 1][4];

    __device__ __forceinline__ AttentionFp8(const AttentionParams& params, uint32_t shared_base, const AttentionItem& piece)
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

    // `p.query` is [rows][(query_heads + 2 kv_heads) x D] f32 here, turned: rounded to bf16 as the cache of bf16 has them.
    __device__ __forceinline__ void load_query() {
        const uint64_t width = (uint64_t)(p.query_heads + 2 * p.kv_heads) * D;
        for (uint32_t index = threadIdx.x; index < ROWS * D / 8; index += THREADS) {
            const uint32_t row = index / (D / 8), eight = index % (D / 8);
            uint4 packed = make_uint4(0, 0, 0, 0);
            if (row < flats) {
                const uint32_t flat = item.first_flat + row, g = group();
                const uint64_t at = (item.first_row + flat / g) * width + (head * g + flat % g) * D + eight * 8;
                const float4* from = (const float4*)((const float*)p.query + at);
                const float4 low = from[0], high = from[1];
                packed = make_uint4(pack_bf16(low.x, low.y), pack_bf16(low.z, low.w), pack_bf16(high.x, high.y),
                                    pack_bf16(high.z, high.w));
            }
            store_shared(shared + row * QUERY_PITCH + eight * 16, packed);
        }
    }

    // Starts the copies of a step's keys and values; what no row of the tile sees becomes zeros.
    __device__ __forceinline__ void load_step(uint32_t step, uint32_t stage) {
        const KvShape shape = {p.layers, p.kv_heads, D};
        const uint8_t* cache = (const uint8_t*)p.cache;
        const uint8_t* first = cache + kv_byte_start(shape, blocks[0], p.layer, 0, head);
        const uint8_t* second = cache + kv_byte_start(shape, blocks[1], p.layer, 0, head);
        const uint64_t to_values = p.kv_heads * kv_byte_part(shape);
        const uint32_t key = (first_step + step) * STEP;
        const uint32_t to = shared + QUERY_BYTES + stage * 2 * HALF_BYTES;
#pragma unroll
        for (int i = 0; i < (STEP * CHUNKS + THREADS - 1) / THREADS; ++i) {
            const uint32_t index = threadIdx.x + i * THREADS;
            const uint32_t row = index / CHUNKS, chunk = index % CHUNKS;
            if (STEP * CHUNKS % THREADS == 0 || row < STEP) {
                const uint8_t* from = (row < KV_BLOCK_TOKENS ? first : second - KV_BLOCK_TOKENS * D) + index * 16;
                const uint32_t bytes = key + row - key_begin < key_end - key_begin ? 16 : 0;
                const uint32_t at = to + row * PITCH + chunk * 16;
                copy_async(at, from, bytes);
                copy_async(at + HALF_BYTES, from + to_values, bytes);
            }
        }
        // The scales of 4 positions; those that were never written are of no consequence.
        if (threadIdx.x < STEP / 2) {
            const uint32_t four = threadIdx.x % (STEP / 4), part = threadIdx.x / (STEP / 4);
            const uint8_t* from = (four < KV_BLOCK_TOKENS / 4 ? first : second) + KV_BLOCK_TOKENS * D;
            copy_async(to + part * HALF_BYTES + SCALES + four * 16, from + part * to_values + four % (KV_BLOCK_TOKENS / 4) * 16, 16);
        }
        if (step + 1 < steps) {
            find_blocks(step + 1);
        }
    }

    __device__ __forceinline__ uint32_t query_address(int depth) const {
        return shared + (row_warp * 16 + lane % 16) * QUERY_PITCH + (lane / 16) * 16 + depth * 32;
    }

    // One step of 64 keys for the warp's 16 rows.
    __device__ __forceinline__ void compute(uint32_t step, uint32_t stage) {
        const uint32_t key = (first_step + step) * STEP;
        if (!active || key > warp_high || key + STEP - 1 < window_begin(warp_low, p.window)) {
            return;  // nothing that a row of the warp sees
        }
        const uint32_t keys = shared + QUERY_BYTES + stage * 2 * HALF_BYTES, values = keys + HALF_BYTES;
        float s[STEP / 2];
#pragma unroll
        for (int i = 0; i < STEP / 2; ++i) {
            s[i] = 0.0f;
        }
        uint32_t factors[STEP / 16];  // of the keys that the thread holds, two each
#pragma unroll
        for (int sixteen = 0; sixteen < STEP / 16; ++sixteen) {
            factors[sixteen] = two_factors(keys + SCALES + (sixteen * 16 + lane / 4) * 4, 32);
        }
        // Where no queries are kept no register depends on the depth.
#pragma unroll(KEPT > 0 ? CHUNKS : 1)
        for (int depth = 0; depth < CHUNKS; ++depth) {
            uint32_t loaded[4];
            if (depth >= KEPT) {
                load_matrices(loaded, query_address(depth));
            }
            const uint32_t(&a)[4] = depth < KEPT ? query[depth < KEPT ? depth : 0] : loaded;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                uint32_t b[4];  // of 8 keys each
                load_matrices(b, keys + (half * 32 + lane) * PITCH + depth * 16);
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const uint32_t factor = __byte_perm(factors[half * 2 + i / 2], 0, i % 2 == 0 ? 0x1010 : 0x3232);
                    const Widened key = widened(b[i], factor);
                    mma_bf16(four_of(s, 16 * half + 4 * i), a, key.even, key.odd);
                }
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
#pragma unroll
        for (int sixteen = 0; sixteen < STEP / 16; ++sixteen) {
            mma_bf16(this->sums, weights[sixteen], BF16_ONES, BF16_ONES);
            const uint32_t scales = values + SCALES + (sixteen * 16 + lane % 4 * 2) * 4;
            const uint32_t low = two_factors(scales, 4), high = two_factors(scales + 32, 4);
#pragma unroll
            for (int pair = 0; pair < Rows::PAIRS; pair += 2) {
                // The upper lanes' addresses are those of the next 16 dimensions of the warp, where it has some.
                const uint32_t own = dim_warp + (pair + lane / 16) * DIM_WARPS;
                uint32_t b[4];
                load_matrices_turned(b, values + (sixteen * 16 + lane % 16) * PITCH + min(own, CHUNKS - 1u) * 16);
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const uint32_t dims = dim_warp + (pair + half) * DIM_WARPS;
                    if (pair + half < Rows::PAIRS && (D / 16 % DIM_WARPS == 0 || dims < D / 16)) {
                        const Widened first = widened(b[2 * half], low), second = widened(b[2 * half + 1], high);
                        float(&to)[2][4] = this->values[pair + half < Rows::PAIRS ? pair + half : 0];
                        mma_bf16(to[0], weights[sixteen], first.even, second.even);
                        mma_bf16(to[1], weights[sixteen], first.odd, second.odd);
                    }
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

    // The opened piece, its first copies under way, its queries stored.
    __device__ __forceinline__ void run() {
        this->begin_tile();
        uint32_t stage = 0;
        for (uint32_t step = 0; step < steps; ++step) {
            copies_wait<STAGES - 2>();
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
