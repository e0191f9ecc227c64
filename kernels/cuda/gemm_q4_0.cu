// Exact products of 8-bit activations with Q4_0 weights.
#include "gemm_int8.cuh"

POLYLINK_INT8_KERNELS(Q4_0)
