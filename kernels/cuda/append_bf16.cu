// Queries and keys are normed (where the model does so) and turned by their positions, keys and values appended to the cache of
// bf16, queries left in bf16 for the attention. Rules 4 and 5 of docs/numerics.md operation by operation; each result is
// rounded once, to the nearest bf16, ties to even.
#include "common.cuh"
#include "kv_layout.cuh"

using namespace polylink;

namespace {

constexpr uint32_t WARPS = 4;
constexpr uint32_t DIM_MAX = 256;

// Mirrored by kernels/src/cuda/attention.rs.
struct AppendParams {
    const float* qkv;              // [rows][(query_heads + 2 kv_heads) x head_dim]
    uint16_t* query;               // bf16 [rows][query_heads][head_dim]
    uint16_t* cache;               // kv_layout.cuh
    const float* sine;             // [positions][pairs]
    const float* cosine;
    const float* long_sine;        // of sequences with flag 1; the same as sine where there is none
    const float* long_cosine;
    const float* query_norm;       // [head_dim], or null: no norm
    const float* key_norm;
    const uint32_t* positions;     // by row
    const uint32_t* sequence_of;
    const uint32_t* table_start;   // by sequence
    const uint32_t* flags;
    const uint32_t* block_tables;
    const StepCounts* counts;
    uint32_t query_heads;
    uint32_t kv_heads;
    uint32_t head_dim;             // even, at most DIM_MAX
    uint32_t pairs;
    uint32_t layer;
    uint32_t layers;
    float eps;
    uint32_t spare;
};

// Value e of a head after the turn.
__device__ __forceinline__ float turned(const float* head, const float* sine, const float* cosine, uint32_t pairs, uint32_t e) {
    if (e < pairs) {
        return __fsub_rn(__fmul_rn(head[e], cosine[e]), __fmul_rn(head[e + pairs], sine[e]));
    }
    if (e < 2 * pairs) {
        const uint32_t i = e - pairs;
        return __fadd_rn(__fmul_rn(head[e], cosine[i]), __fmul_rn(head[i], sine[i]));
    }
    return head[e];
}

// 1 / sqrt(mean square + eps) of a head whose values i and i + 32 mod 64 are this lane's: 64 lanes, folded.
__device__ __forceinline__ float norm_scale(const float* head, uint32_t dim, float eps, uint32_t lane) {
    float low = 0.0f, high = 0.0f;
    for (uint32_t i = lane; i < dim; i += 64) {
        low = fmaf(head[i], head[i], low);
        if (i + 32 < dim) {
            high = fmaf(head[i + 32], head[i + 32], high);
        }
    }
    float sum = __fadd_rn(low, high);
#pragma unroll
    for (int half = 16; half > 0; half /= 2) {
        sum = __fadd_rn(sum, __shfl_down_sync(0xffffffffu, sum, half));
    }
    sum = __shfl_sync(0xffffffffu, sum, 0);
    return __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(sum, (float)dim), eps)));
}

}  // namespace

// A warp per row and head.
extern "C" __global__ void __launch_bounds__(32 * WARPS) append_bf16(const __grid_constant__ AppendParams p) {
    __shared__ float heads[WARPS][DIM_MAX];
    pdl_launch();
    pdl_wait();
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t per_row = p.query_heads + 2 * p.kv_heads, dim = p.head_dim;
    const uint64_t number = (uint64_t)blockIdx.x * WARPS + warp;
    const uint32_t row = (uint32_t)(number / per_row), head = (uint32_t)(number % per_row);
    if (row >= p.counts->rows) {
        return;
    }
    float* own = heads[warp];
    const float* from = p.qkv + ((uint64_t)row * per_row + head) * dim;
    for (uint32_t i = 2 * lane; i < dim; i += 64) {
        *(float2*)(own + i) = *(const float2*)(from + i);
    }
    __syncwarp();
    const uint32_t position = p.positions[row], sequence = p.sequence_of[row];
    const bool is_query = head < p.query_heads, is_value = head >= p.query_heads + p.kv_heads;
    const float* norm = is_query ? p.query_norm : p.key_norm;
    if (!is_value && norm != nullptr) {
        const float scale = norm_scale(own, dim, p.eps, lane);
        __syncwarp();
        for (uint32_t i = lane; i < dim; i += 32) {
            own[i] = __fmul_rn(__fmul_rn(own[i], scale), norm[i]);
        }
        __syncwarp();
    }
    uint16_t* to;
    if (is_query) {
        to = p.query + ((uint64_t)row * p.query_heads + head) * dim;
    } else {
        const uint32_t part = is_value ? 1 : 0;
        const uint32_t block = p.block_tables[p.table_start[sequence] + position / KV_BLOCK_TOKENS];
        const KvShape shape = {p.layers, p.kv_heads, dim};
        to = p.cache + kv_value(shape, block, p.layer, part, head - p.query_heads - part * p.kv_heads,
                                position % KV_BLOCK_TOKENS, 0);
    }
    const bool is_long = p.flags[sequence] & 1;
    const float* sine = (is_long ? p.long_sine : p.sine) + (uint64_t)position * p.pairs;
    const float* cosine = (is_long ? p.long_cosine : p.cosine) + (uint64_t)position * p.pairs;
    const uint32_t pairs = is_value ? 0 : p.pairs;
    for (uint32_t e = 2 * lane; e < dim; e += 64) {
        const uint32_t low = to_bf16(turned(own, sine, cosine, pairs, e));
        const uint32_t high = to_bf16(turned(own, sine, cosine, pairs, e + 1));
        *(uint32_t*)(to + e) = low | high << 16;
    }
}
