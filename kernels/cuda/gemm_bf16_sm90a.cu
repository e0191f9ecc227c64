// Products of bf16 on Hopper; gemm_ring_sm90a.cuh says how.
#include "gemm_ring_sm90a.cuh"

#define POLYLINK_GEMM(NT, W)                                                                                     \
    extern "C" __global__ void __launch_bounds__(polylink::BLOCK_THREADS<NT, W>, 1)                              \
        gemm_n##NT##_w##W(const __grid_constant__ polylink::GemmParams p) {                                      \
        polylink::gemm_block<NT, W, polylink::Bf16Rows>(p);                                                                          \
    }

POLYLINK_GEMM(8, 1)
POLYLINK_GEMM(8, 2)
POLYLINK_GEMM(16, 1)
POLYLINK_GEMM(16, 2)
POLYLINK_GEMM(32, 1)
POLYLINK_GEMM(32, 4)
POLYLINK_GEMM(64, 1)
POLYLINK_GEMM(64, 4)
POLYLINK_GEMM(128, 1)
POLYLINK_GEMM(128, 2)
POLYLINK_GEMM(256, 2)
