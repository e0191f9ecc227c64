// The attention kernels over bf16 caches; attention_bf16.cuh says what they compute.
#include "attention_bf16_tile.cuh"

using namespace polylink;

namespace {

template <class A>
__device__ __forceinline__ void attention(const AttentionParams& p) {
    extern __shared__ __align__(128) uint8_t dynamic[];
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

}  // namespace

#define ATTENTION(NAME, D, ROW_WARPS, DIM_WARPS, STAGES, KEPT, BLOCKS)                                           \
    extern "C" __global__ void __launch_bounds__(32 * ROW_WARPS * DIM_WARPS, BLOCKS)                             \
        attention_bf16_##NAME(const __grid_constant__ AttentionParams p) {                                       \
        attention<Attention<D, ROW_WARPS, DIM_WARPS, STAGES, KEPT, false>>(p);                                   \
    }                                                                                                            \
    extern "C" __global__ void __launch_bounds__(32 * ROW_WARPS * DIM_WARPS, BLOCKS)                             \
        attention_bf16_##NAME##_cap(const __grid_constant__ AttentionParams p) {                                 \
        attention<Attention<D, ROW_WARPS, DIM_WARPS, STAGES, (KEPT + 1) / 2, true>>(p);                          \
    }

// Mirrored by `TILES` in kernels/src/cuda/attention.rs.
ATTENTION(64_narrow, 64, 1, 4, 4, 4, 3)
ATTENTION(64_wide, 64, 8, 1, 4, 4, 1)
ATTENTION(80_narrow, 80, 1, 4, 3, 5, 3)
ATTENTION(80_wide, 80, 8, 1, 3, 5, 1)
ATTENTION(96_narrow, 96, 1, 4, 2, 6, 3)
ATTENTION(96_wide, 96, 8, 1, 3, 6, 1)
ATTENTION(128_narrow, 128, 1, 4, 2, 6, 3)
ATTENTION(128_wide, 128, 8, 1, 3, 4, 1)
ATTENTION(256_narrow, 256, 1, 4, 2, 8, 1)
ATTENTION(256_wide, 256, 4, 2, 2, 1, 1)
