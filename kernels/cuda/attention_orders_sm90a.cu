// For a test: whether wgmma and mma.sync give the same bits, which the wide attention of sm_90a relies on, both for scores and
// for values, and whether the descriptors say what they should.
#include "attention_bf16.cuh"
#include "wgmma.cuh"

using namespace polylink;

namespace {

// Mirrored by kernels/src/cuda/attention/tests/orders.rs.
struct OrdersParams {
    const uint16_t* a;   // bf16 [64 rows][128]
    const uint16_t* b;   // bf16 [64 keys][128]
    float* scores[2];    // [64 rows][64 keys]: a x b transposed, by wgmma and by mma.sync
    float* values[2];    // [64 rows][128 dims]: a's first 64 columns x b
};

}  // namespace

extern "C" __global__ void __launch_bounds__(128) attention_orders(const __grid_constant__ OrdersParams p) {
    extern __shared__ __align__(1024) uint8_t dynamic[];
    const uint32_t a = (shared_address(dynamic) + 1023) / 1024 * 1024, b = a + 64 * 256;
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    pdl_launch();
    pdl_wait();
    for (uint32_t index = threadIdx.x; index < 64 * 16; index += 128) {
        const uint32_t at = swizzled(64, index / 16, index % 16);
        copy_async(a + at, p.a + index * 8, 16);
        copy_async(b + at, p.b + index * 8, 16);
    }
    copies_commit();
    copies_wait<0>();
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();

    float scores[2][32];
    wgmma_fence();
#pragma unroll
    for (int depth = 0; depth < 8; ++depth) {
        const uint32_t at = depth / 4 * 64 * 128 + depth % 4 * 32;
        wgmma_bf16(scores[0], along_rows(a + at), along_rows(b + at), depth == 0);
    }
    wgmma_commit();
    wgmma_wait<0>();

    // The same fragments by ldmatrix.
    uint32_t rows[8][4];
    const uint32_t row = warp * 16 + lane % 16;
#pragma unroll
    for (int depth = 0; depth < 8; ++depth) {
        load_matrices(rows[depth], a + swizzled(64, row, depth * 2 + lane / 16));
    }
#pragma unroll
    for (int i = 0; i < 32; ++i) {
        scores[1][i] = 0.0f;
    }
#pragma unroll
    for (int sixteen = 0; sixteen < 4; ++sixteen) {
#pragma unroll
        for (int depth = 0; depth < 8; ++depth) {
            uint32_t keys[4];
            load_matrices(keys, b + swizzled(64, sixteen * 16 + lane % 8 + lane / 16 * 8, depth * 2 + lane / 8 % 2));
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float(&d)[4] = *(float(*)[4]) & scores[1][8 * sixteen + 4 * half];
                mma_bf16(d, rows[depth], keys[2 * half], keys[2 * half + 1]);
            }
        }
    }

    float values[2][64];
#pragma unroll
    for (int i = 0; i < 64; ++i) {
        values[0][i] = values[1][i] = 0.0f;
    }
    wgmma_fence();
#pragma unroll
    for (int sixteen = 0; sixteen < 4; ++sixteen) {
        wgmma_turned(values[0], rows[sixteen], across_rows(b + sixteen * 2048, 64 * 128));
    }
    wgmma_commit();
    wgmma_wait<0>();
#pragma unroll
    for (int sixteen = 0; sixteen < 4; ++sixteen) {
#pragma unroll
        for (int pair = 0; pair < 8; ++pair) {
            uint32_t dims[4];
            load_matrices_turned(dims, b + swizzled(64, sixteen * 16 + lane % 16, pair * 2 + lane / 16));
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float(&d)[4] = *(float(*)[4]) & values[1][8 * pair + 4 * half];
                mma_bf16(d, rows[sixteen], dims[2 * half], dims[2 * half + 1]);
            }
        }
    }
#pragma unroll
    for (int which = 0; which < 2; ++which) {
#pragma unroll
        for (int i = 0; i < 64; ++i) {
            const uint32_t to = warp * 16 + lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
            if (i < 32) {
                p.scores[which][to * 64 + column] = scores[which][i < 32 ? i : 0];
            }
            p.values[which][to * 128 + column] = values[which][i];
        }
    }
}
