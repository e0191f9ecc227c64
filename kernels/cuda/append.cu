// Queries and keys of a step: normalised head by head where the model does, turned by their positions, and what the KV cache
// keeps of keys and values (docs/numerics.md, rules 4 and 5).
//
// A warp per row and head; a head's values lie in shared memory between the steps. Queries are written back in place; keys
// and values only go to the cache, where attention reads them.
#include "fp8.cuh"
#include "kv_layout.cuh"
#include "row_store.cuh"

namespace polylink {

enum class KvForm { F32, Bf16, Int8, Fp8, Fp8Paired };

constexpr uint32_t APPEND_WARPS = 4;

struct AppendParams {
    float* qkv;                 // [rows][(query_heads + 2 × heads) × head_dim]
    const float* query_weight;  // norm of query heads, [head_dim]; null: no norms
    const float* key_weight;
    const float* sine;          // [positions][pairs]
    const float* cosine;
    const float* long_sine;     // of long sequences, or null
    const float* long_cosine;
    const uint32_t* positions;    // [rows]
    const uint32_t* sequence_of;  // [rows]
    const uint32_t* table_start;  // [sequences]
    const uint32_t* flags;        // [sequences]
    const uint32_t* block_tables;
    const uint32_t* count;
    uint8_t* cache;
    KvShape shape;
    uint32_t layer;
    uint32_t query_heads;
    uint32_t pairs;
    float eps;
    uint32_t spare;
};

// Items: values of a head per lane; 32 × items ≥ head_dim.
template <KvForm form, int items>
__device__ __forceinline__ void append_head(const AppendParams& p) {
    __shared__ __align__(16) float heads[APPEND_WARPS][32 * items];
    pdl_launch();
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, row = blockIdx.x;
    const uint32_t head = blockIdx.y * APPEND_WARPS + warp, kv_heads = p.shape.heads, dim = p.shape.head_dim;
    const uint32_t all = p.query_heads + 2 * kv_heads;
    // Inputs of the step and tables are written by no kernel: they are read ahead.
    if (row >= *p.count || head >= all) {
        pdl_wait();
        return;
    }
    const bool query = head < p.query_heads, turned = head < p.query_heads + kv_heads;
    const uint32_t position = p.positions[row], sequence = p.sequence_of[row];
    float sine[items / 2], cosine[items / 2];
    if (turned) {
        const bool far = p.long_sine && (p.flags[sequence] & SEQUENCE_LONG);
        const float* sines = (far ? p.long_sine : p.sine) + (uint64_t)position * p.pairs;
        const float* cosines = (far ? p.long_cosine : p.cosine) + (uint64_t)position * p.pairs;
#pragma unroll
        for (int item = 0; item < items / 2; ++item) {
            const uint32_t pair = item * 32 + lane;
            sine[item] = pair < p.pairs ? sines[pair] : 0.0f;
            cosine[item] = pair < p.pairs ? cosines[pair] : 0.0f;
        }
    }
    const uint32_t block = query ? 0 : p.block_tables[p.table_start[sequence] + position / KV_BLOCK_TOKENS];
    const float* weight = !turned ? nullptr : query ? p.query_weight : p.key_weight;
    pdl_wait();

    float* from = p.qkv + ((uint64_t)row * all + head) * dim;
    float* own = heads[warp];
    float x[items];
#pragma unroll
    for (int item = 0; item < items; ++item) {
        const uint32_t d = item * 32 + lane;
        x[item] = d < dim ? from[d] : 0.0f;
    }
    if (weight) {
        float lanes[2] = {0.0f, 0.0f};
#pragma unroll
        for (int item = 0; item < items; ++item) {
            if (item * 32 + lane < dim) lanes[item % 2] = fmaf(x[item], x[item], lanes[item % 2]);
        }
        const float scale = norm_scale(fold_lanes(lanes[0], lanes[1]), dim, p.eps);
#pragma unroll
        for (int item = 0; item < items; ++item) {
            const uint32_t d = item * 32 + lane;
            if (d < dim) x[item] = __fmul_rn(__fmul_rn(x[item], scale), weight[d]);
        }
    }
#pragma unroll
    for (int item = 0; item < items; ++item) own[item * 32 + lane] = x[item];
    __syncwarp();
    if (turned) {
#pragma unroll
        for (int item = 0; item < items / 2; ++item) {
            const uint32_t pair = item * 32 + lane;
            if (pair < p.pairs) {
                const float low = own[pair], high = own[pair + p.pairs];
                own[pair] = turned_low(low, high, cosine[item], sine[item]);
                own[pair + p.pairs] = turned_high(low, high, cosine[item], sine[item]);
            }
        }
        __syncwarp();
    }
    const float4* fours = reinterpret_cast<const float4*>(own);
    if (query) {
        for (uint32_t four = lane; four * 4 < dim; four += 32) reinterpret_cast<float4*>(from)[four] = fours[four];
        return;
    }
    const uint32_t part = turned ? 0 : 1, kv_head = head - p.query_heads - part * kv_heads, token = position % KV_BLOCK_TOKENS;
    if (form == KvForm::F32) {
        float* to = reinterpret_cast<float*>(p.cache) + kv_value(p.shape, block, p.layer, part, kv_head, token, 0);
        for (uint32_t four = lane; four * 4 < dim; four += 32) reinterpret_cast<float4*>(to)[four] = fours[four];
    } else if (form == KvForm::Bf16) {
        uint16_t* to = reinterpret_cast<uint16_t*>(p.cache) + kv_value(p.shape, block, p.layer, part, kv_head, token, 0);
        for (uint32_t four = lane; four * 4 < dim; four += 32) {
            const float4 v = fours[four];
            reinterpret_cast<uint2*>(to)[four] = make_uint2(two_bf16(v.x, v.y), two_bf16(v.z, v.w));
        }
    } else {
        float largest = 0.0f;
        for (uint32_t four = lane; four * 4 < dim; four += 32) largest = fmaxf(largest, magnitude_of_four(fours[four]));
        largest = largest_of_lanes<32>(largest);
        uint8_t* start = p.cache + kv_byte_start(p.shape, block, p.layer, part, kv_head);
        uint32_t* to = reinterpret_cast<uint32_t*>(start + (uint64_t)token * dim);
        float scale;
        if (form == KvForm::Int8) {
            scale = quantise_scale(largest);
            for (uint32_t four = lane; four * 4 < dim; four += 32) to[four] = quantise_four(fours[four], scale);
        } else {
            const E4m3Scale both = e4m3_scale(largest);
            scale = both.scale;
            for (uint32_t four = lane; four * 4 < dim; four += 32) {
                float4 v = fours[four];
                if (form == KvForm::Fp8Paired) {
                    const float* pair = own + kv_paired(4 * four);
                    v = make_float4(pair[0], pair[8], pair[1], pair[9]);
                }
                to[four] = e4m3_four(v, both);
            }
        }
        if (lane == 0) reinterpret_cast<float*>(start + (uint64_t)KV_BLOCK_TOKENS * dim)[token] = scale;
    }
}

struct HeadNormParams {
    float* qkv;                 // [rows][(query_heads + 2 × kv_heads) × head_dim], in place
    const float* query_weight;  // [head_dim]
    const float* key_weight;
    const uint32_t* count;
    uint32_t query_heads;
    uint32_t kv_heads;
    uint32_t head_dim;
    float eps;
};

}  // namespace polylink

using namespace polylink;

#define POLYLINK_APPEND(name, form, items)                                                                           \
    extern "C" __global__ void __launch_bounds__(32 * APPEND_WARPS) name(const __grid_constant__ AppendParams p) {   \
        append_head<form, items>(p);                                                                                 \
    }

POLYLINK_APPEND(append_f32_4, KvForm::F32, 4)
POLYLINK_APPEND(append_bf16_4, KvForm::Bf16, 4)
POLYLINK_APPEND(append_int8_4, KvForm::Int8, 4)
POLYLINK_APPEND(append_fp8_4, KvForm::Fp8, 4)
POLYLINK_APPEND(append_fp8_paired_4, KvForm::Fp8Paired, 4)
POLYLINK_APPEND(append_f32_16, KvForm::F32, 16)
POLYLINK_APPEND(append_bf16_16, KvForm::Bf16, 16)
POLYLINK_APPEND(append_int8_16, KvForm::Int8, 16)
POLYLINK_APPEND(append_fp8_16, KvForm::Fp8, 16)
POLYLINK_APPEND(append_fp8_paired_16, KvForm::Fp8Paired, 16)

// The norm of heads alone: a warp per row and head.
extern "C" __global__ void __launch_bounds__(32 * APPEND_WARPS) head_norm(const __grid_constant__ HeadNormParams p) {
    pdl_launch();
    pdl_wait();
    const uint32_t lane = threadIdx.x % 32, row = blockIdx.x, head = blockIdx.y * APPEND_WARPS + threadIdx.x / 32;
    if (row >= *p.count || head >= p.query_heads + p.kv_heads) return;
    const float* weight = head < p.query_heads ? p.query_weight : p.key_weight;
    float* values = p.qkv + ((uint64_t)row * (p.query_heads + 2 * p.kv_heads) + head) * p.head_dim;
    float low = 0.0f, high = 0.0f;
    for (uint32_t d = lane; d < p.head_dim; d += 64) {
        low = fmaf(values[d], values[d], low);
        if (d + 32 < p.head_dim) high = fmaf(values[d + 32], values[d + 32], high);
    }
    const float scale = norm_scale(fold_lanes(low, high), p.head_dim, p.eps);
    for (uint32_t d = lane; d < p.head_dim; d += 32) values[d] = __fmul_rn(__fmul_rn(values[d], scale), weight[d]);
}
