// The attention kernels over bf16 caches; attention_bf16.cuh says what they compute.
#include "attention_bf16_tile.cuh"
#include "attention_pieces.cuh"

using namespace polylink;

#define ATTENTION(NAME, D, ROW_WARPS, DIM_WARPS, STAGES, KEPT, BLOCKS)                                           \
    extern "C" __global__ void __launch_bounds__(32 * ROW_WARPS * DIM_WARPS, BLOCKS)                             \
        attention_bf16_##NAME(const __grid_constant__ AttentionParams p) {                                       \
        attention_pieces<Attention<D, ROW_WARPS, DIM_WARPS, STAGES, KEPT, false>>(p);                            \
    }                                                                                                            \
    extern "C" __global__ void __launch_bounds__(32 * ROW_WARPS * DIM_WARPS, BLOCKS)                             \
        attention_bf16_##NAME##_cap(const __grid_constant__ AttentionParams p) {                                 \
        attention_pieces<Attention<D, ROW_WARPS, DIM_WARPS, STAGES, (KEPT + 1) / 2, true>>(p);                   \
    }

// Mirrored by `TILES` in kernels/src/cuda/attention/tiles.rs.
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
