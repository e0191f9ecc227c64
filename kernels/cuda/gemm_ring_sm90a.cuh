// Products of bf16 on Hopper: out[token][n] = Σ_k input[token][k] × w[n][k], the weights in bf16, or in e4m3 (gemm_fp8.cuh).
//
// Weights are the A operand of `wgmma` (64 outputs per warpgroup), tokens its N: an output is one chain of m64nNk16
// instructions, k ascending, whatever the number of tokens, so that a row's bits do not depend on the batch. Few tokens need
// no split over k to fill the device either: blocks take as few as 8 outputs each; rows of A that are not theirs are whatever
// lies in shared memory, and their sums are dropped.
//
// A block is W consumer warpgroups (64 outputs each), one warp that copies weights and one that copies tokens, around a ring
// of stages. All tiles lie in device memory as shared memory wants them, so copies are plain bulk copies. Weights do not
// depend on earlier kernels: a step that streams them (`stream`) fills the ring before it waits for those.
// Grouped products know their weight only afterwards, and wait first.
// Blocks of a cluster have different outputs and the same tokens: each copies its part of these to all.
//
// A is read from shared memory where it is bf16. Numbers of e4m3 become it in registers, but for the last rounding while the products
// of the k tile before are under way; only rows of the item are read.
#pragma once

#include "gemm_async.cuh"
#include "gemm_epilogue.cuh"
#include "gemm_fp8.cuh"
#include "gemm_params.cuh"
#include "wgmma.cuh"
#include "wgmma_registers.cuh"

namespace polylink {

constexpr uint32_t STAGES_MAX = 16;

// How weights lie: bytes of 8 outputs of a tile, how many k tiles that is; bytes of so many outputs, whole eights.
struct Bf16Rows {
    static constexpr uint32_t EIGHT = 1024, DEPTH = 1;
    static constexpr bool FP8 = false;
    static __device__ __forceinline__ uint32_t bytes(uint32_t outputs) { return outputs * 128; }
};

struct Fp8Rows {
    static constexpr uint32_t EIGHT = FP8_EIGHT_BYTES, DEPTH = 2;
    static constexpr bool FP8 = true;
    static __device__ __forceinline__ uint32_t bytes(uint32_t outputs) { return outputs / 8 * EIGHT; }
};

// What a k tile of an output takes.
template <class Rows>
constexpr uint32_t ROW_BYTES = Rows::EIGHT / (8 * Rows::DEPTH);

// The producers' warps are two; with 256 tokens a whole warpgroup, for it gives registers away.
template <int NT, int W>
constexpr int BLOCK_THREADS = 128 * W + (NT == 256 ? 128 : 64);

// Outputs row0 … row0 + rows of tokens token0 … token0 + NT.
struct Item {
    uint32_t row0, rows, token0;
};

// The items of a block, in order; the same in all its warps, and as many in all blocks of a cluster.
template <int NT, int W>
struct Items {
    const GemmParams& p;
    uint32_t rank;    // in the cluster
    uint32_t row_blocks, token_tiles, count;

    __device__ Items(const GemmParams& params, uint32_t cluster_rank, uint32_t tokens) : p(params), rank(cluster_rank) {
        token_tiles = (tokens + NT - 1) / NT;
        row_blocks = (p.padded_outputs + 64 * W * p.cluster - 1) / (64 * W * p.cluster);
        uint32_t clusters = gridDim.x / p.cluster, cluster = blockIdx.x / p.cluster;
        uint32_t tiles = row_blocks * token_tiles;
        count = p.stream ? (tokens == 0 ? 0 : p.passes) : tiles > cluster ? (tiles - cluster + clusters - 1) / clusters : 0;
    }

    __device__ Item get(uint32_t i) const {
        if (p.stream) {
            uint32_t low = (uint32_t)((uint64_t)p.units * blockIdx.x / gridDim.x);
            uint32_t share = (uint32_t)((uint64_t)p.units * (blockIdx.x + 1) / gridDim.x) - low;
            uint32_t begin = share * i / p.passes, end = share * (i + 1) / p.passes;
            return {(low + begin) * p.unit_rows, (end - begin) * p.unit_rows, 0};
        }
        uint32_t index = blockIdx.x / p.cluster + i * (gridDim.x / p.cluster);
        uint32_t group = index / (p.group * row_blocks), within = index % (p.group * row_blocks);
        uint32_t width = min(p.group, token_tiles - group * p.group);
        uint32_t row0 = (within / width * p.cluster + rank) * 64 * W;
        uint32_t rows = row0 < p.padded_outputs ? min(64u * W, p.padded_outputs - row0) : 0;
        return {row0, rows, (group * p.group + within % width) * NT};
    }
};

// Where the ring is.
struct Ring {
    uint32_t base, full, empty;            // shared addresses
    uint32_t slot_bytes, tokens_offset, weights_offset;  // of a stage
    uint32_t stages, steps;                // steps: stages that an item takes
    uint32_t stage, parity;                // of the next step; parity flips when the ring starts anew

    __device__ void next() {
        if (++stage == stages) {
            stage = 0;
            parity ^= 1;
        }
    }
    __device__ uint32_t full_at(uint32_t s) const { return full + 8 * s; }
    __device__ uint32_t empty_at(uint32_t s) const { return empty + 8 * s; }
    __device__ uint32_t slot(uint32_t s) const { return base + s * slot_bytes; }
};

// A lane's part in the steps of an item: one copy per step, or none.
struct Lane {
    const uint8_t* source;
    uint64_t stride;  // from step to step
    uint32_t offset;  // in the slot
    uint32_t bytes;   // 0: none
    uint32_t all;     // bytes that come to this block per step
};

// Weights: for each tile along k of a step the pieces of the tiles that the rows lie in.
template <class Rows>
__device__ __forceinline__ Lane weights_lane(const GemmParams& p, const Ring& ring, const uint8_t* weights, Item item, uint32_t lane) {
    const uint32_t k_count = p.stage_k_tiles / Rows::DEPTH;
    const uint32_t tile0 = item.row0 / 64, skipped = item.row0 % 64, pieces = max(1u, (skipped + item.rows + 63) / 64);
    const uint32_t k = lane / pieces, piece = lane % pieces;
    const uint32_t from = piece == 0 ? skipped : 0, to = min(64u, skipped + item.rows - 64 * piece);
    Lane mine;
    mine.source = weights + ((uint64_t)(tile0 + piece) * (p.k_tiles / Rows::DEPTH) + k) * (8 * Rows::EIGHT) + Rows::bytes(from);
    mine.stride = (uint64_t)k_count * (8 * Rows::EIGHT);
    mine.offset = (Rows::FP8 ? ring.weights_offset : 0) + Rows::bytes(k * p.pass_rows + 64 * piece + from - skipped);
    mine.bytes = k < k_count && item.rows > 0 ? Rows::bytes(to - from) : 0;
    mine.all = k_count * Rows::bytes(item.rows);
    return mine;
}

// Tokens: of each k tile of a step this block's part, for all blocks of the cluster.
template <int NT>
__device__ __forceinline__ Lane tokens_lane(const GemmParams& p, const Ring& ring, const GemmRows& all, Item item, uint32_t rank,
                                            uint32_t lane) {
    const uint32_t k_count = p.stage_k_tiles, rows = min((uint32_t)NT, all.tokens - item.token0);
    const uint32_t share = NT / p.cluster, from = rank * share, to = min(rows, from + share);
    Lane mine;
    mine.source = p.input + ((uint64_t)lane * p.input_capacity + all.first_row + item.token0 + from) * 128;
    mine.stride = (uint64_t)k_count * p.input_capacity * 128;
    mine.offset = ring.tokens_offset + (lane * NT + from) * 128;
    mine.bytes = lane < k_count && from < to ? (to - from) * 128 : 0;
    mine.all = k_count * rows * 128;
    return mine;
}

// The warp that copies weights.
template <int NT, int W, class Rows>
__device__ __forceinline__ void produce_weights(const GemmParams& p, Ring ring, uint32_t rank) {
    const uint32_t lane = threadIdx.x % 32;
    const uint64_t policy = p.stream ? policy_evict_first() : policy_evict_normal();
    // A stream's items do not depend on the counts, except that there are none without tokens.
    const bool early = p.stream && !p.grouped;
    GemmRows rows = {p.weights, NT, 0};
    if (!early) {
        pdl_wait();
        rows = gemm_rows<ROW_BYTES<Rows>>(p);
    }
    Items<NT, W> items(p, rank, rows.tokens);
    uint32_t done = 0;
    for (uint32_t i = 0; i < items.count; ++i) {
        Lane mine = weights_lane<Rows>(p, ring, rows.weights, items.get(i), lane);
#pragma unroll 1
        for (uint32_t s = 0; s < ring.steps; ++s, ++done) {
            if (done == ring.stages && early) {
                pdl_wait();
                if (gemm_rows<ROW_BYTES<Rows>>(p).tokens == 0) {
                    return;
                }
            }
            if (done >= ring.stages) {
                barrier_wait(ring.empty_at(ring.stage), ring.parity ^ 1);
            }
            const uint32_t full = ring.full_at(ring.stage);
            if (lane == 0) {
                barrier_arrive_bytes(full, mine.all);
            }
            if (mine.bytes > 0) {
                copy_bulk_hint(ring.slot(ring.stage) + mine.offset, mine.source, mine.bytes, full, policy);
            }
            mine.source += mine.stride;
            ring.next();
        }
    }
}

// The warp that copies tokens.
template <int NT, int W, class Rows>
__device__ __forceinline__ void produce_tokens(const GemmParams& p, Ring ring, uint32_t rank) {
    const uint32_t lane = threadIdx.x % 32;
    const uint16_t everyone = (uint16_t)((1u << p.cluster) - 1);
    pdl_wait();
    fence_async_global();
    const GemmRows rows = gemm_rows<ROW_BYTES<Rows>>(p);
    if (p.stream && !p.grouped && rows.tokens == 0) {
        // Weights are on their way into the ring: let the consumers wait for them.
        for (uint32_t s = 0; s < min(ring.stages, ring.steps * p.passes); ++s) {
            if (lane == 0) {
                barrier_arrive(ring.full_at(s));
            }
        }
        return;
    }
    Items<NT, W> items(p, rank, rows.tokens);
    uint32_t done = 0;
    for (uint32_t i = 0; i < items.count; ++i) {
        Lane mine = tokens_lane<NT>(p, ring, rows, items.get(i), rank, lane);
#pragma unroll 1
        for (uint32_t s = 0; s < ring.steps; ++s, ++done) {
            if (done >= ring.stages) {
                barrier_wait(ring.empty_at(ring.stage), ring.parity ^ 1);
            }
            const uint32_t full = ring.full_at(ring.stage), target = ring.slot(ring.stage) + mine.offset;
            if (lane == 0) {
                barrier_arrive_bytes(full, mine.all);
            }
            if (mine.bytes > 0) {
                if (everyone == 1) {
                    copy_bulk(target, mine.source, mine.bytes, full);
                } else {
                    copy_bulk_multicast(target, mine.source, mine.bytes, full, everyone);
                }
            }
            mine.source += mine.stride;
            ring.next();
        }
    }
}

// Tells all blocks of the cluster that this warp has read a stage.
__device__ __forceinline__ void release_stage(const GemmParams& p, uint32_t barrier, uint32_t lane) {
    if (p.cluster == 1) {
        if (lane == 0) {
            barrier_arrive(barrier);
        }
    } else if (lane < p.cluster) {
        barrier_arrive_remote(barrier, lane);
    }
}

// All steps of an item, K_TILES each: d = weights × tokens of this warpgroup's 64 outputs.
template <int NT, int K_TILES>
__device__ __forceinline__ void multiply_item(const GemmParams& p, Ring& ring, float (&d)[NT / 2], uint32_t group, uint32_t lane) {
    uint32_t read = 0;
#pragma unroll 1
    for (uint32_t s = 0; s < ring.steps; ++s) {
        barrier_wait(ring.full_at(ring.stage), ring.parity);
        const uint32_t slot = ring.slot(ring.stage);
        const uint64_t a = along_rows(slot + group * 64 * 128), b = along_rows(slot + ring.tokens_offset);
        const uint64_t a_step = p.pass_rows * 128 / 16, b_step = NT * 128 / 16;
        wgmma_fence();
#pragma unroll
        for (uint32_t k = 0; k < K_TILES; ++k) {
            wgmma_bf16(d, a + k * a_step, b + k * b_step, s == 0 && k == 0);
            wgmma_bf16(d, a + k * a_step + 2, b + k * b_step + 2, 0);
            wgmma_bf16(d, a + k * a_step + 4, b + k * b_step + 4, 0);
            wgmma_bf16(d, a + k * a_step + 6, b + k * b_step + 6, 0);
        }
        wgmma_commit();
        // The step before is complete when at most this one is not.
        wgmma_wait<1>();
        if (s > 0) {
            release_stage(p, ring.empty_at(read), lane);
        }
        read = ring.stage;
        ring.next();
    }
    wgmma_wait<0>();
    release_stage(p, ring.empty_at(read), lane);
}

// The same of e4m3, of the item's `rows`: a warp takes two runs of 8 outputs, or what there is of them.
template <int NT, int K_TILES>
__device__ __forceinline__ void multiply_item_fp8(const GemmParams& p, Ring& ring, float (&d)[NT / 2], uint32_t group, uint32_t lane,
                                                  uint32_t rows) {
    const uint32_t eight = 8 * group + 2 * (__shfl_sync(0xffffffff, threadIdx.x / 32, 0) % 4);
    const bool first = 8 * eight < rows, second = 8 * eight + 8 < rows;
    const uint4 none = make_uint4(0, 0, 0, 0);
    uint32_t a[16], read = 0;
    float values[32];
#pragma unroll 1
    for (uint32_t s = 0; s < ring.steps; ++s) {
        barrier_wait(ring.full_at(ring.stage), ring.parity);
        const uint32_t slot = ring.slot(ring.stage);
        const uint64_t b = along_rows(slot);
#pragma unroll
        for (uint32_t pair = 0; pair < K_TILES / 2; ++pair) {
            const uint32_t at = slot + ring.weights_offset + (pair * (p.pass_rows / 8) + eight) * FP8_EIGHT_BYTES;
            const float scale = first ? load_shared_float(at + FP8_SCALES + lane / 4 * 4) : 0.0f;
            const float next_scale = second ? load_shared_float(at + FP8_EIGHT_BYTES + FP8_SCALES + lane / 4 * 4) : 0.0f;
#pragma unroll
            for (uint32_t half = 0; half < 2; ++half) {
                const uint4 words = first ? load_shared_16(at + half * 512 + lane * 16) : none;
                const uint4 next_words = second ? load_shared_16(at + FP8_EIGHT_BYTES + half * 512 + lane * 16) : none;
#pragma unroll
                for (uint32_t q = 0; q < 4; ++q) {
                    fp8_values(values + 8 * q, word_of(words, q), word_of(next_words, q), scale, next_scale);
                }
                pin(values);
                // Nothing may be written that products read which are under way: only rounding is left for after them.
                wgmma_wait<0>();
                if (s > 0 && pair == 0 && half == 0) {
                    release_stage(p, ring.empty_at(read), lane);
                }
#pragma unroll
                for (uint32_t i = 0; i < 16; ++i) {
                    a[i] = pack_bf16(values[2 * i], values[2 * i + 1]);
                }
                pin(a);
                wgmma_fence();
#pragma unroll
                for (uint32_t q = 0; q < 4; ++q) {
                    const uint64_t tokens = b + (2 * pair + half) * (NT * 128 / 16) + 2 * q;
                    wgmma_of_registers(d, a + 4 * q, tokens, s == 0 && pair == 0 && half == 0 && q == 0);
                }
                wgmma_commit();
            }
        }
        read = ring.stage;
        ring.next();
    }
    wgmma_wait<0>();
    release_stage(p, ring.empty_at(read), lane);
}

// A warpgroup that multiplies.
template <int NT, int W, class Rows>
__device__ __forceinline__ void consume(const GemmParams& p, Ring ring, uint32_t rank, float* staging) {
    // By shuffle, so that the compiler knows it to be the same in a whole warp.
    const uint32_t lane = threadIdx.x % 32, group = __shfl_sync(0xffffffff, threadIdx.x / 128, 0);
    pdl_wait();
    const GemmRows rows = gemm_rows<ROW_BYTES<Rows>>(p);
    if (p.stream && !p.grouped && rows.tokens == 0) {
        for (uint32_t s = 0; s < min(ring.stages, ring.steps * p.passes); ++s) {
            barrier_wait(ring.full_at(s), 0);
        }
        return;
    }
    Items<NT, W> items(p, rank, rows.tokens);
    float d[NT / 2];
    for (uint32_t i = 0; i < items.count; ++i) {
        const Item item = items.get(i);
        if (64 * group >= item.rows) {
            // Nothing to multiply: only keep pace.
#pragma unroll 1
            for (uint32_t s = 0; s < ring.steps; ++s) {
                barrier_wait(ring.full_at(ring.stage), ring.parity);
                release_stage(p, ring.empty_at(ring.stage), lane);
                ring.next();
            }
            continue;
        }
        if constexpr (Rows::FP8) {
            if (p.stage_k_tiles == 2) {
                multiply_item_fp8<NT, 2>(p, ring, d, group, lane, item.rows);
            } else {
                multiply_item_fp8<NT, 4>(p, ring, d, group, lane, item.rows);
            }
        } else {
            switch (p.stage_k_tiles) {
                case 1: multiply_item<NT, 1>(p, ring, d, group, lane); break;
                case 2: multiply_item<NT, 2>(p, ring, d, group, lane); break;
                default: multiply_item<NT, 4>(p, ring, d, group, lane); break;
            }
        }
        gemm_epilogue<NT>(p, d, staging + group * (STAGING_BYTES<NT> / 4), 1 + group, item.row0 + 64 * group,
                          min(64u, item.rows - 64 * group), rows.first_row + item.token0, rows.first_row + rows.tokens);
    }
}

template <int NT, int W, class Rows>
__device__ __forceinline__ void gemm_block(const GemmParams& p) {
    extern __shared__ __align__(128) uint8_t dynamic_shared[];
    __shared__ __align__(8) uint64_t barriers[2 * STAGES_MAX];
    pdl_launch();
    const uint32_t warp = __shfl_sync(0xffffffff, threadIdx.x / 32, 0), rank = p.cluster > 1 ? cluster_rank() : 0;
    Ring ring;
    // Staging first, then the ring at a multiple of 1024.
    ring.base = keep((shared_address(dynamic_shared) + W * STAGING_BYTES<NT> + 1023) & ~1023u);
    ring.full = keep(shared_address(barriers));
    ring.empty = ring.full + 8 * STAGES_MAX;
    if constexpr (Rows::FP8) {
        // Tokens first: they lie at multiples of 1024.
        ring.tokens_offset = 0;
        ring.weights_offset = p.stage_k_tiles * NT * 128;
        ring.slot_bytes = (ring.weights_offset + p.stage_k_tiles / 2 * (p.pass_rows / 8) * FP8_EIGHT_BYTES + 1023) & ~1023u;
    } else {
        ring.weights_offset = 0;
        ring.tokens_offset = p.stage_k_tiles * p.pass_rows * 128;
        ring.slot_bytes = ring.tokens_offset + p.stage_k_tiles * NT * 128;
    }
    ring.stages = p.stages;
    ring.steps = p.k_tiles / p.stage_k_tiles;
    ring.stage = 0;
    ring.parity = 0;
    if (threadIdx.x == 0) {
        for (uint32_t s = 0; s < p.stages; ++s) {
            barrier_init(ring.full_at(s), 2);
            barrier_init(ring.empty_at(s), 4 * W * p.cluster);
        }
        barrier_init_fence();
    }
    if (p.cluster > 1) {
        cluster_sync();
    } else {
        __syncthreads();
    }
    if (warp >= 4 * W) {
        if constexpr (NT == 256) {
            asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        }
        if (warp == 4 * W) {
            produce_weights<NT, W, Rows>(p, ring, rank);
        } else if (warp == 4 * W + 1) {
            produce_tokens<NT, W, Rows>(p, ring, rank);
        }
    } else {
        if constexpr (NT == 256) {
            asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        }
        consume<NT, W, Rows>(p, ring, rank, reinterpret_cast<float*>(dynamic_shared));
    }
    // Others may still copy to this block, or arrive here.
    if (p.cluster > 1) {
        __syncwarp();
        cluster_sync();
    }
}

}  // namespace polylink
