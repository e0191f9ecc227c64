// Queries and keys are normed (where the model does so) and turned by their positions, keys and values appended to the cache of
// bf16, queries left in bf16 for the attention. Rules 4 and 5 of docs/numerics.md operation by operation; each result is
// rounded once, to the nearest bf16, ties to even.
#include "kv_layout.cuh"
#include "row_store.cuh"

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
    uint32_t span;                 // heads that a warp (of append_bf16_64: half a warp) takes, one after the other
};

// Where a head's 16-bit values go.
__device__ __forceinline__ uint16_t* place(const AppendParams& p, uint32_t row, uint32_t head, uint32_t block, uint32_t token) {
    if (head < p.query_heads) {
        return p.query + ((uint64_t)row * p.query_heads + head) * p.head_dim;
    }
    const uint32_t part = head < p.query_heads + p.kv_heads ? 0 : 1;
    const KvShape shape = {p.layers, p.kv_heads, p.head_dim};
    return p.cache + kv_value(shape, block, p.layer, part, head - p.query_heads - part * p.kv_heads, token, 0);
}

// Value e of a head after the turn.
__device__ __forceinline__ float turned(const float* head, const float* sine, const float* cosine, uint32_t pairs, uint32_t e) {
    if (e < pairs) {
        return turned_low(head[e], head[e + pairs], cosine[e], sine[e]);
    }
    if (e < 2 * pairs) {
        const uint32_t i = e - pairs;
        return turned_high(head[i], head[e], cosine[i], sine[i]);
    }
    return head[e];
}

// 1 / sqrt(mean square + eps) of a head whose values i and i + 32 mod 64 are this lane's: 64 lanes, folded.
__device__ __forceinline__ float head_scale(const float* head, uint32_t dim, float eps, uint32_t lane) {
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
    return norm_scale(sum, dim, eps);
}

// Heads of D = 64 or 128 values that are turned whole: four neighbouring values to a lane, D / 4 lanes to a head.
template <int D>
__device__ __forceinline__ void append_whole(const AppendParams& p) {
    constexpr uint32_t LANES = D / 4, GROUPS = 32 / LANES;
    pdl_launch();
    const uint32_t per_row = p.query_heads + 2 * p.kv_heads;
    const uint32_t groups = (per_row + p.span - 1) / p.span;  // of heads, in a row
    const uint64_t number = ((uint64_t)blockIdx.x * WARPS + threadIdx.x / 32) * GROUPS + threadIdx.x % 32 / LANES;
    const uint32_t lane = threadIdx.x % LANES;
    const bool there = number / groups < p.counts->rows;
    const uint32_t row = there ? (uint32_t)(number / groups) : 0;
    const uint32_t first = (uint32_t)(number % groups) * p.span;
    uint32_t position = 0, block = 0;
    float sine[4] = {}, cosine[4] = {};
    if (there) {
        position = p.positions[row];
        const uint32_t sequence = p.sequence_of[row];
        block = p.block_tables[p.table_start[sequence] + position / KV_BLOCK_TOKENS];
        const bool is_long = p.flags[sequence] & SEQUENCE_LONG;
        const uint64_t at = (uint64_t)position * (D / 2) + lane * 4 % (D / 2);
        *(float4*)sine = *(const float4*)((is_long ? p.long_sine : p.sine) + at);
        *(float4*)cosine = *(const float4*)((is_long ? p.long_cosine : p.cosine) + at);
    }
    const bool low_half = lane < LANES / 2;
    pdl_wait();  // what is read above is written by the host
#pragma unroll 4
    for (uint32_t i = 0; i < p.span; ++i) {
        const uint32_t head = first + i;
        const bool own = there && head < per_row;
        const bool is_value = head >= p.query_heads + p.kv_heads;
        float x[4] = {}, y[4];
        if (own) {
            *(float4*)x = *(const float4*)(p.qkv + ((uint64_t)row * per_row + head) * D + lane * 4);
        }
        const float* norm = head < p.query_heads ? p.query_norm : p.key_norm;
        if (p.query_norm != nullptr) {
            // Rule 4's lane j holds values j and j + 64: those of lane j / 4 here, and of the one 16 further.
            float sum[4];
#pragma unroll
            for (int c = 0; c < 4; ++c) {
                sum[c] = fmaf(x[c], x[c], 0.0f);
                if constexpr (D == 128) {
                    const float high = __shfl_down_sync(0xffffffffu, x[c], 16);
                    sum[c] = fmaf(high, high, sum[c]);
                }
#pragma unroll
                for (int half = 8; half > 0; half /= 2) {
                    sum[c] = __fadd_rn(sum[c], __shfl_down_sync(0xffffffffu, sum[c], half, 16));
                }
            }
            float all = __fadd_rn(__fadd_rn(sum[0], sum[2]), __fadd_rn(sum[1], sum[3]));
            all = __shfl_sync(0xffffffffu, all, 0, LANES);
            const float scale = norm_scale(all, D, p.eps);
            if (own && !is_value) {
                float weight[4];
                *(float4*)weight = *(const float4*)(norm + lane * 4);
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    x[c] = __fmul_rn(__fmul_rn(x[c], scale), weight[c]);
                }
            }
        }
#pragma unroll
        for (int c = 0; c < 4; ++c) {
            y[c] = __shfl_xor_sync(0xffffffffu, x[c], LANES / 2);
            const float straight = __fmul_rn(x[c], cosine[c]), across = __fmul_rn(y[c], sine[c]);
            y[c] = is_value ? x[c] : low_half ? __fsub_rn(straight, across) : __fadd_rn(straight, across);
        }
        if (own) {
            uint2 packed;
            packed.x = to_bf16(y[0]) | (uint32_t)to_bf16(y[1]) << 16;
            packed.y = to_bf16(y[2]) | (uint32_t)to_bf16(y[3]) << 16;
            *(uint2*)(place(p, row, head, block, position % KV_BLOCK_TOKENS) + lane * 4) = packed;
        }
    }
}

}  // namespace

extern "C" __global__ void __launch_bounds__(32 * WARPS) append_bf16_64(const __grid_constant__ AppendParams p) {
    append_whole<64>(p);
}

extern "C" __global__ void __launch_bounds__(32 * WARPS) append_bf16_128(const __grid_constant__ AppendParams p) {
    append_whole<128>(p);
}

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
        const float scale = head_scale(own, dim, p.eps, lane);
        __syncwarp();
        for (uint32_t i = lane; i < dim; i += 32) {
            own[i] = __fmul_rn(__fmul_rn(own[i], scale), norm[i]);
        }
        __syncwarp();
    }
    const uint32_t block = p.block_tables[p.table_start[sequence] + position / KV_BLOCK_TOKENS];
    uint16_t* to = place(p, row, head, block, position % KV_BLOCK_TOKENS);
    const bool is_long = p.flags[sequence] & SEQUENCE_LONG;
    const float* sine = (is_long ? p.long_sine : p.sine) + (uint64_t)position * p.pairs;
    const float* cosine = (is_long ? p.long_cosine : p.cosine) + (uint64_t)position * p.pairs;
    const uint32_t pairs = is_value ? 0 : p.pairs;
    for (uint32_t e = 2 * lane; e < dim; e += 64) {
        const uint32_t low = to_bf16(turned(own, sine, cosine, pairs, e));
        const uint32_t high = to_bf16(turned(own, sine, cosine, pairs, e + 1));
        *(uint32_t*)(to + e) = low | high << 16;
    }
}
