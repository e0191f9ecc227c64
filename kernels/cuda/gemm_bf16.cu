// Products of bf16 by `mma.sync`; gemm_mma.cuh says how.
#include "gemm_mma.cuh"

#define POLYLINK_GEMM(NT)                                                                                               \
    extern "C" __global__ void __launch_bounds__(128) gemm_n##NT(const __grid_constant__ polylink::GemmParams p) { \
        polylink::mma_block<NT, polylink::Bf16Weights>(p);                                                              \
    }

POLYLINK_GEMM(8)
POLYLINK_GEMM(32)
POLYLINK_GEMM(64)
