// The warpgroup's matrix instruction (sm_90a): bf16 operands, sums in f32; and its descriptors of operands in shared memory.
//
// Lane l of warp w holds, in d[4 j + i], row 16 w + l / 4 + 8 (i / 2) of D and its column 8 j + 2 (l % 4) + i % 2 (PTX ISA,
// wgmma, the accumulator's fragment): what mma.sync m16n8k16 has for the warp's 16 rows.
#pragma once

#include <cstdint>

namespace polylink {

// Operands in registers, eight at a time.
#define POLYLINK_ACC4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define POLYLINK_ACC16(i) POLYLINK_ACC4(i), POLYLINK_ACC4(i + 4), POLYLINK_ACC4(i + 8), POLYLINK_ACC4(i + 12)
#define POLYLINK_ACC64(i) POLYLINK_ACC16(i), POLYLINK_ACC16(i + 16), POLYLINK_ACC16(i + 32), POLYLINK_ACC16(i + 48)

// D[64][N] += A[64][16] × B[16][N], both with the 16 along rows of shared memory (along_rows), one overload per N = 2 × the
// length of d. `first`: D = A × B, whatever D held.
__device__ __forceinline__ void wgmma_bf16(float (&d)[4], uint64_t a, uint64_t b, uint32_t first) {
    asm volatile(
        "{\n.reg .pred p;\n"
        "setp.eq.b32 p, %6, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3}, "
        "%4, %5, p, 1, 1, 0, 0;\n}\n"
        : POLYLINK_ACC4(0)
        : "l"(a), "l"(b), "r"(first));
}

__device__ __forceinline__ void wgmma_bf16(float (&d)[8], uint64_t a, uint64_t b, uint32_t first) {
    asm volatile(
        "{\n.reg .pred p;\n"
        "setp.eq.b32 p, %10, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7}, "
        "%8, %9, p, 1, 1, 0, 0;\n}\n"
        : POLYLINK_ACC4(0), POLYLINK_ACC4(4)
        : "l"(a), "l"(b), "r"(first));
}

__device__ __forceinline__ void wgmma_bf16(float (&d)[16], uint64_t a, uint64_t b, uint32_t first) {
    asm volatile(
        "{\n.reg .pred p;\n"
        "setp.eq.b32 p, %18, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
        "%16, %17, p, 1, 1, 0, 0;\n}\n"
        : POLYLINK_ACC16(0)
        : "l"(a), "l"(b), "r"(first));
}

__device__ __forceinline__ void wgmma_bf16(float (&d)[32], uint64_t a, uint64_t b, uint32_t first) {
    asm volatile(
        "{\n.reg .pred p;\n"
        "setp.eq.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "%32, %33, p, 1, 1, 0, 0;\n}\n"
        : POLYLINK_ACC16(0), POLYLINK_ACC16(16)
        : "l"(a), "l"(b), "r"(first));
}

__device__ __forceinline__ void wgmma_bf16(float (&d)[64], uint64_t a, uint64_t b, uint32_t first) {
    asm volatile(
        "{\n.reg .pred p;\n"
        "setp.eq.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, p, 1, 1, 0, 0;\n}\n"
        : POLYLINK_ACC64(0)
        : "l"(a), "l"(b), "r"(first));
}

__device__ __forceinline__ void wgmma_bf16(float (&d)[128], uint64_t a, uint64_t b, uint32_t first) {
    asm volatile(
        "{\n.reg .pred p;\n"
        "setp.eq.b32 p, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
        "%128, %129, p, 1, 1, 0, 0;\n}\n"
        : POLYLINK_ACC64(0), POLYLINK_ACC64(64)
        : "l"(a), "l"(b), "r"(first));
}

// D[64][N] += A[64][16] × B[16][N], A in registers, B's N along rows of shared memory (across_rows).
__device__ __forceinline__ void wgmma_turned(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
        : POLYLINK_ACC16(0), POLYLINK_ACC16(16)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

__device__ __forceinline__ void wgmma_turned(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "{%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
        : POLYLINK_ACC64(0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef POLYLINK_ACC4
#undef POLYLINK_ACC16
#undef POLYLINK_ACC64

// Orders the registers of the accumulator against the instructions that follow.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until at most `N` groups are unfinished.
template <int N>
__device__ __forceinline__ void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// Byte of the 16-byte piece `chunk` of a row of a tile: panels of 64 values, [rows][128 bytes] each, swizzled by 128 bytes.
__device__ __forceinline__ uint32_t swizzled(uint32_t rows, uint32_t row, uint32_t chunk) {
    return chunk / 8 * rows * 128 + row * 128 + ((chunk % 8) ^ (row % 8)) * 16;
}

// Descriptor of such a tile at a multiple of 1024 bytes, the product's depth along its rows: groups of 8 rows are 1024 bytes
// apart. 16 values further along the row: 32 bytes, within a panel.
__device__ __forceinline__ uint64_t along_rows(uint32_t address) {
    return (uint64_t)1 << 62 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 16 | (uint64_t)((address & 0x3ffff) >> 4);
}

// Descriptor of such a tile, the product's depth across its rows: panels are `panel` bytes apart, groups of 8 rows 1024. 16
// rows further: 2048 bytes.
__device__ __forceinline__ uint64_t across_rows(uint32_t address, uint32_t panel) {
    return (uint64_t)1 << 62 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)(panel >> 4) << 16 | (uint64_t)((address & 0x3ffff) >> 4);
}

}  // namespace polylink
