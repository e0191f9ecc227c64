// Exact attention: the fold of tiles computed apart, and the kernels (attention_exact.cuh).
#include "attention_exact.cuh"

namespace polylink::exact {

// Folds the parts of one row and head: blockIdx.y is the head, a thread has two dimensions.
__device__ __forceinline__ void fold_parts(const ExactAttentionParams& p) {
    pdl_launch();
    const uint32_t dim = p.shape.head_dim, group = p.query_heads / p.shape.heads;
    const uint32_t per_head = (group + QUERIES - 1) / QUERIES, head = blockIdx.y;
    const uint32_t in_group = head % group, heads_before = in_group / QUERIES * QUERIES;
    const uint32_t heads = group - heads_before < QUERIES ? group - heads_before : QUERIES;
    const uint32_t y = head / group * per_head + in_group / QUERIES, grid_y = p.shape.heads * per_head;
    pdl_wait();
    const uint32_t merges = p.counts->attention_merges;
    for (uint32_t number = blockIdx.x; number < merges; number += gridDim.x) {
        const AttentionMerge merge = p.merges[number];
        const uint32_t query = merge.index * heads + in_group % QUERIES;
        const bool valid = threadIdx.x < dim / 2;
        const float* part = p.partial + (((uint64_t)merge.first_part * grid_y + y) * QUERIES + query) * (dim + 2);
        const uint64_t apart = (uint64_t)grid_y * QUERIES * (dim + 2);
        float largest = -INFINITY, sum = 0.0f;
        float2 output = make_float2(0.0f, 0.0f);
#pragma unroll 4
        for (uint32_t i = 0; i < merge.parts; ++i, part += apart) {
            const float most = part[0], total = part[1];
            const float2 values = valid ? *reinterpret_cast<const float2*>(part + 2 + threadIdx.x * 2) : make_float2(0.0f, 0.0f);
            if (most == -INFINITY) {
                continue;
            }
            if (largest == -INFINITY) {
                largest = most;
                sum = total;
                output = values;
                continue;
            }
            const float now = fmaxf(largest, most);
            const float a = exact_exp(__fsub_rn(largest, now)), b = exact_exp(__fsub_rn(most, now));
            sum = fmaf(sum, a, __fmul_rn(total, b));
            output.x = fmaf(output.x, a, __fmul_rn(values.x, b));
            output.y = fmaf(output.y, a, __fmul_rn(values.y, b));
            largest = now;
        }
        write_output(p, valid, merge.row, head, valid ? threadIdx.x : 0,
                     make_float2(__fdiv_rn(output.x, sum), __fdiv_rn(output.y, sum)));
    }
}

}  // namespace polylink::exact

#define POLYLINK_EXACT_ATTENTION(name, kind, UNITS, CHUNK, RING, BLOCKS)                                                                  \
    extern "C" __global__ void __launch_bounds__(256, BLOCKS) name(const __grid_constant__ polylink::exact::ExactAttentionParams p) {     \
        POLYLINK_DYNAMIC_SHARED(uint8_t, shared);\
        polylink::exact::ExactAttention<polylink::exact::Kv::kind, UNITS, CHUNK, RING>::run(p, shared);                           \
    }

// By head dimension: at most 128, 256, 512. kernels/src/cuda/exact/attention.rs knows CHUNK and RING too.
POLYLINK_EXACT_ATTENTION(attention_f32_128, F32, 1, 64, 4, 1)
POLYLINK_EXACT_ATTENTION(attention_f32_256, F32, 2, 32, 3, 1)
POLYLINK_EXACT_ATTENTION(attention_f32_512, F32, 4, 32, 2, 1)
POLYLINK_EXACT_ATTENTION(attention_bf16_128, Bf16, 1, 64, 5, 2)
POLYLINK_EXACT_ATTENTION(attention_bf16_256, Bf16, 2, 64, 3, 1)
POLYLINK_EXACT_ATTENTION(attention_bf16_512, Bf16, 4, 32, 3, 1)
POLYLINK_EXACT_ATTENTION(attention_int8_128, Int8, 1, 64, 9, 2)
POLYLINK_EXACT_ATTENTION(attention_int8_256, Int8, 2, 64, 4, 1)
POLYLINK_EXACT_ATTENTION(attention_int8_512, Int8, 4, 64, 3, 1)
POLYLINK_EXACT_ATTENTION(attention_fp8_128, Fp8, 1, 64, 9, 2)
POLYLINK_EXACT_ATTENTION(attention_fp8_256, Fp8, 2, 64, 4, 1)
POLYLINK_EXACT_ATTENTION(attention_fp8_512, Fp8, 4, 64, 3, 1)

extern "C" __global__ void __launch_bounds__(256) attention_fold(
    const __grid_constant__ polylink::exact::ExactAttentionParams p) {
    polylink::exact::fold_parts(p);
}
