// How a block of the attention by mma.sync goes through a plan's pieces.
#pragma once

#include "attention_bf16.cuh"

namespace polylink {

// A: a tile's computation, as attention_bf16_tile.cuh has it.
template <class A>
__device__ __forceinline__ void attention_pieces(const AttentionParams& p) {
    POLYLINK_DYNAMIC_SHARED(__align__(128) uint8_t, dynamic);
    __shared__ __align__(16) AttentionItem piece;
    pdl_launch();
    A block(p, shared_address(dynamic), piece);
    const uint32_t total = p.plan[p.wide ? 1 : 0] * p.kv_heads;
    bool waited = false;
    // Pieces come by descending cost: every other round is dealt backwards.
    for (uint32_t round = 0; round * gridDim.x < total; ++round) {
        const uint32_t work = round * gridDim.x + (round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
        if (work >= total) {
            continue;
        }
        if (round > 0) {
            __syncthreads();  // all warps are done with the piece before
        }
        if (threadIdx.x < 2) {
            const uint32_t number = (p.wide ? p.plan[2] : 0) + work / p.kv_heads;
            ((uint4*)&piece)[threadIdx.x] = __ldg((const uint4*)(p.plan + PLAN_HEADER_WORDS) + 2 * number + threadIdx.x);
        }
        __syncthreads();
        block.open(work % p.kv_heads);
        const bool early = !waited && block.first_are_old();
        if (early) {
            block.load_first();
        }
        if (!waited) {
            pdl_wait();
            waited = true;
        }
        if (!early) {
            block.load_first();
        }
        if (block.steps > 0) {
            block.load_query();
        }
        copies_commit();
        block.run();
    }
    if (!waited) {
        pdl_wait();
    }
}

}  // namespace polylink
