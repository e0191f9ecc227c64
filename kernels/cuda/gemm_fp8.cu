// Products of bf16 over weights of e4m3 by `mma.sync`; gemm_mma.cuh says how.
#include "gemm_mma.cuh"

#define POLYLINK_GEMM_FP8(NT)                                                                                               \
    extern "C" __global__ void __launch_bounds__(128) gemm_fp8_n##NT(const __grid_constant__ polylink::GemmParams p) { \
        polylink::mma_block<NT, polylink::Fp8Weights>(p);                                                                   \
    }

POLYLINK_GEMM_FP8(8)
POLYLINK_GEMM_FP8(32)
POLYLINK_GEMM_FP8(64)
