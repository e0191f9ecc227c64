// Instructions that the exact families share: copies to shared memory that go on in the background, matrix fragments, and the
// products of 8-bit integers. All of sm_80.
#pragma once

#include "common.cuh"

#ifdef POLYLINK_EMULATED
#include "emulator/exact.h"
#else
#include <cuda_fp16.h>

#include "gemm_async.cuh"

// Whether there are bulk copies.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define POLYLINK_BULK
#endif

namespace polylink::exact {

using polylink::shared_address;

// 16 bytes, both addresses multiples of 16, past the L1 cache.
__device__ __forceinline__ void copy_16(uint32_t to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

// 4 bytes.
__device__ __forceinline__ void copy_4(uint32_t to, const void* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until all but the newest `pending` groups of this thread's copies are there.
template <int pending>
__device__ __forceinline__ void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// 16 rows × 32 bytes as the left operand of `multiply_32`. Lane l gives the address of row l % 16, byte l / 16 × 16.
__device__ __forceinline__ void load_rows_16(uint32_t (&a)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(address));
}

// 8 rows × 64 bytes: inputs 0 … 15 and 16 … 31 of the first 32, then of the others. Lane l gives the address of row l % 8, byte
// l / 8 × 16.
__device__ __forceinline__ void load_rows_8_wide(uint32_t (&words)[4], uint32_t address) { load_rows_16(words, address); }

// The same of 8 rows, the others 0. Lane l < 16 gives the address of row l % 8, byte l / 8 × 16; the others any of these.
__device__ __forceinline__ void load_rows_8(uint32_t (&a)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(a[0]), "=r"(a[2]) : "r"(address));
    a[1] = 0;
    a[3] = 0;
}

// sum[row][column] = start + Σ over 32 of a × b. Lane l holds of b inputs 4 (l % 4) … + 3 and 16 + 4 (l % 4) … of column
// l / 4, of the sum rows l / 4 (0, 1) and l / 4 + 8 (2, 3), columns 2 (l % 4) and the next.
__device__ __forceinline__ void multiply_32(int (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int start) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %10, %10, %10};"
                 : "=r"(sum[0]), "=r"(sum[1]), "=r"(sum[2]), "=r"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(start));
}

// Over 16 inputs: those of a0, a1 and b0 above, or of a2, a3 and b1.
__device__ __forceinline__ void multiply_16(int (&sum)[4], uint32_t a0, uint32_t a1, uint32_t b, int start) {
    asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %7, %7, %7};"
                 : "=r"(sum[0]), "=r"(sum[1]), "=r"(sum[2]), "=r"(sum[3])
                 : "r"(a0), "r"(a1), "r"(b), "r"(start));
}

// Two neighbouring f16 values, widened (exact).
__device__ __forceinline__ float2 widen(const uint8_t* at) { return __half22float2(*reinterpret_cast<const __half2*>(at)); }

}  // namespace polylink::exact
#endif

namespace polylink::exact {

// Rows of a product: how many are in use, from which one on, of which matrix of a group (StepCounts).
struct Share {
    uint32_t rows;
    uint32_t first_row;
    uint64_t weights;  // bytes from the first matrix on
};

// What the block's group is to do; after pdl_wait. `most`: rows of the launch; `wanted`: whether those are the wanted ones.
__device__ __forceinline__ Share share_of(const StepCounts* counts, uint32_t most, uint32_t wanted, uint64_t matrix_bytes) {
    const StepCounts& own = counts[blockIdx.z];
    const uint32_t rows = wanted != 0 ? own.wanted : own.rows;
    return {rows < most ? rows : most, own.first_row, own.matrix * matrix_bytes};
}

}  // namespace polylink::exact
