// The attention kernels over caches of e4m3; attention_fp8_tile.cuh says what they compute.
#include "attention_fp8_tile.cuh"
#include "attention_pieces.cuh"

using namespace polylink;

#define ATTENTION(NAME, D, ROW_WARPS, DIM_WARPS, STAGES, KEPT, CAP_KEPT, BLOCKS)                                 \
    extern "C" __global__ void __launch_bounds__(32 * ROW_WARPS * DIM_WARPS, BLOCKS)                             \
        attention_fp8_##NAME(const __grid_constant__ AttentionParams p) {                                        \
        attention_pieces<AttentionFp8<D, ROW_WARPS, DIM_WARPS, STAGES, KEPT, false>>(p);                         \
    }                                                                                                            \
    extern "C" __global__ void __launch_bounds__(32 * ROW_WARPS * DIM_WARPS, BLOCKS)                             \
        attention_fp8_##NAME##_cap(const __grid_constant__ AttentionParams p) {                                  \
        attention_pieces<AttentionFp8<D, ROW_WARPS, DIM_WARPS, STAGES, CAP_KEPT, true>>(p);                      \
    }

// Mirrored by `TILES` in kernels/src/cuda/attention/tiles.rs.
ATTENTION(64_narrow, 64, 1, 4, 4, 4, 2, 3)
ATTENTION(64_wide, 64, 8, 1, 4, 4, 2, 1)
ATTENTION(80_narrow, 80, 1, 4, 4, 5, 3, 3)
ATTENTION(80_wide, 80, 8, 1, 4, 5, 3, 1)
ATTENTION(96_narrow, 96, 1, 4, 4, 4, 2, 3)
ATTENTION(96_wide, 96, 8, 1, 4, 6, 3, 1)
ATTENTION(128_narrow, 128, 1, 4, 3, 4, 0, 3)
ATTENTION(128_wide, 128, 8, 1, 4, 0, 0, 1)
ATTENTION(256_narrow, 256, 1, 4, 3, 0, 0, 1)
ATTENTION(256_wide, 256, 4, 2, 3, 0, 0, 1)
