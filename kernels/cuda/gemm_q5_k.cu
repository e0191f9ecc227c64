// Exact products of 8-bit activations with Q5_K weights.
#include "gemm_int8.cuh"

POLYLINK_INT8_KERNELS(Q5_K)
