// Products of bf16 by `mma.sync`, where there is no `wgmma` (sm_80 on): the parameters and layouts of gemm_bf16_sm90a.cu.
//
// A block takes 64 outputs (4 warps of 16) of NT tokens. An output is one chain of m16n8k16 instructions, k ascending, for
// any number of tokens.
#include "gemm_epilogue.cuh"
#include "gemm_params.cuh"

namespace polylink {

constexpr uint32_t MMA_STAGES = 4;

__device__ __forceinline__ void copy_16(uint32_t to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

__device__ __forceinline__ void load_matrices_4(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

__device__ __forceinline__ void load_matrices_2(uint32_t (&r)[2], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(address) : "memory");
}

__device__ __forceinline__ void multiply(float* d, const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <int NT>
__device__ __forceinline__ void mma_block(const GemmParams& p) {
    extern __shared__ __align__(128) uint8_t dynamic_shared[];
    constexpr uint32_t SLOT = 8192 + NT * 128;
    float* staging = reinterpret_cast<float*>(dynamic_shared);
    const uint32_t ring = shared_address(dynamic_shared) + STAGING_BYTES<NT>;
    const uint32_t thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    pdl_launch();
    pdl_wait();
    const GemmRows rows = gemm_rows(p);
    const uint32_t token0 = rows.first_row + blockIdx.y * NT, tokens = rows.first_row + rows.tokens;
    if (token0 >= tokens) {
        return;
    }
    const uint8_t* weights = rows.weights + (uint64_t)blockIdx.x * p.k_tiles * 8192;
    const uint8_t* input = p.input + (uint64_t)token0 * 128;
    // Rows behind the last token may lie behind the input: the last token stands for them.
    const uint32_t last = (min((uint32_t)NT, tokens - token0) - 1) * 128;
    auto copy_stage = [&](uint32_t k) {
        if (k < p.k_tiles) {
            const uint32_t slot = ring + k % MMA_STAGES * SLOT;
            for (uint32_t at = thread * 16; at < 8192; at += 128 * 16) {
                copy_16(slot + at, weights + (uint64_t)k * 8192 + at);
            }
            for (uint32_t at = thread * 16; at < NT * 128; at += 128 * 16) {
                copy_16(slot + 8192 + at, input + (uint64_t)k * p.input_capacity * 128 + min(at, last + at % 128));
            }
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
    };
    for (uint32_t k = 0; k < MMA_STAGES - 1; ++k) {
        copy_stage(k);
    }
    float d[NT / 2];
#pragma unroll
    for (uint32_t i = 0; i < NT / 2; ++i) {
        d[i] = 0;
    }
    // Rows of both operands are 128 bytes; their 16-byte pieces are exchanged by the row's number mod 8.
    const uint32_t a_row = 16 * warp + lane % 16, b_row = lane % 8;
#pragma unroll 1
    for (uint32_t k = 0; k < p.k_tiles; ++k) {
        asm volatile("cp.async.wait_group %0;" ::"n"(MMA_STAGES - 2) : "memory");
        __syncthreads();
        copy_stage(k + MMA_STAGES - 1);
        const uint32_t slot = ring + k % MMA_STAGES * SLOT;
#pragma unroll
        for (uint32_t q = 0; q < 4; ++q) {
            uint32_t a[4];
            load_matrices_4(a, slot + a_row * 128 + ((2 * q + lane / 16) ^ (a_row % 8)) * 16);
#pragma unroll
            for (uint32_t j = 0; j < NT / 8; ++j) {
                uint32_t b[2];
                load_matrices_2(b, slot + 8192 + (8 * j + b_row) * 128 + ((2 * q + lane / 8 % 2) ^ b_row) * 16);
                multiply(d + 4 * j, a, b);
            }
        }
    }
    gemm_epilogue<NT>(p, d, staging, 1, blockIdx.x * 64, 64, token0, tokens);
}

}  // namespace polylink

#define POLYLINK_GEMM(NT)                                                                                               \
    extern "C" __global__ void __launch_bounds__(128) gemm_n##NT(const __grid_constant__ polylink::GemmParams p) { \
        polylink::mma_block<NT>(p);                                                                                     \
    }

POLYLINK_GEMM(8)
POLYLINK_GEMM(32)
POLYLINK_GEMM(64)
