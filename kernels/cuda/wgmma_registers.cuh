// The warpgroup's matrix instruction with A in registers, D[64][N] += A[64][16] x B[16][N], B as wgmma_bf16 has it (wgmma.cuh).
//
// Lane l of warp w holds in a[0] row 16 w + l / 4 of A, inputs 2 (l % 4) and the next; in a[1] those of 8 rows further; in a[2] and
// a[3] the same of 8 inputs further. `first`: D = A x B. The registers of A may change when the instruction was waited for.
#pragma once

#include <cstdint>

namespace polylink {

// Computed here, neither earlier nor later.
template <int N>
__device__ __forceinline__ void pin(uint32_t (&a)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
        asm volatile("" : "+r"(a[i])::"memory");
    }
}

template <int N>
__device__ __forceinline__ void pin(float (&values)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
        asm volatile("" : "+f"(values[i])::"memory");
    }
}

#define POLYLINK_ACC4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define POLYLINK_ACC16(i) POLYLINK_ACC4(i), POLYLINK_ACC4(i + 4), POLYLINK_ACC4(i + 8), POLYLINK_ACC4(i + 12)
#define POLYLINK_ACC64(i) POLYLINK_ACC16(i), POLYLINK_ACC16(i + 16), POLYLINK_ACC16(i + 32), POLYLINK_ACC16(i + 48)

__device__ __forceinline__ void wgmma_of_registers(float (&d)[4], const uint32_t* a, uint64_t b, uint32_t first) {
    asm volatile(
        "{\n.reg .pred p;\n"
        "setp.eq.b32 p, %9, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3}, "
        "{%4, %5, %6, %7}, %8, p, 1, 1, 0;\n}\n"
        : POLYLINK_ACC4(0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(first));
}

__device__ __forceinline__ void wgmma_of_registers(float (&d)[8], const uint32_t* a, uint64_t b, uint32_t first) {
    asm volatile(
        "{\n.reg .pred p;\n"
        "setp.eq.b32 p, %13, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7}, "
        "{%8, %9, %10, %11}, %12, p, 1, 1, 0;\n}\n"
        : POLYLINK_ACC4(0), POLYLINK_ACC4(4)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(first));
}

__device__ __forceinline__ void wgmma_of_registers(float (&d)[16], const uint32_t* a, uint64_t b, uint32_t first) {
    asm volatile(
        "{\n.reg .pred p;\n"
        "setp.eq.b32 p, %21, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
        "{%16, %17, %18, %19}, %20, p, 1, 1, 0;\n}\n"
        : POLYLINK_ACC16(0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(first));
}

__device__ __forceinline__ void wgmma_of_registers(float (&d)[32], const uint32_t* a, uint64_t b, uint32_t first) {
    asm volatile(
        "{\n.reg .pred p;\n"
        "setp.eq.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}\n"
        : POLYLINK_ACC16(0), POLYLINK_ACC16(16)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(first));
}

__device__ __forceinline__ void wgmma_of_registers(float (&d)[64], const uint32_t* a, uint64_t b, uint32_t first) {
    asm volatile(
        "{\n.reg .pred p;\n"
        "setp.eq.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "{%64, %65, %66, %67}, %68, p, 1, 1, 0;\n}\n"
        : POLYLINK_ACC64(0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(first));
}

__device__ __forceinline__ void wgmma_of_registers(float (&d)[128], const uint32_t* a, uint64_t b, uint32_t first) {
    asm volatile(
        "{\n.reg .pred p;\n"
        "setp.eq.b32 p, %133, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
        "{%128, %129, %130, %131}, %132, p, 1, 1, 0;\n}\n"
        : POLYLINK_ACC64(0), POLYLINK_ACC64(64)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(first));
}

#undef POLYLINK_ACC4
#undef POLYLINK_ACC16
#undef POLYLINK_ACC64

}  // namespace polylink
