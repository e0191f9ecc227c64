// Rows between products: gathered, summed, normalised (docs/numerics.md, rule 4), and left as the next product reads them.
//
// One kernel, whose steps are there or not, so that what stands between two products of a layer is one launch:
//
//   x = input[row]  or  ((0 + share_a × input[place_a]) + share_b × input[place_b]) …     (experts, ascending)
//   x = (x × r₁) × first_weight                                                           (a norm after a block)
//   x = residual[row] + x;  stream[row] = x
//   output[row] = (x × r₂) × weight, or x, in the output's form
//
// A block per row. All of a row is loaded at once, 16 values per thread; then 64 lanes have their chains, out of shared memory.
#include "row_store.cuh"

namespace polylink {

struct NormParams {
    const float* input;         // [..][width]
    const uint32_t* gather;     // input row of every row, or null
    const uint32_t* places;     // experts: [rows][top_k] rows of the input, or PLACE_NONE; or null
    const float* shares;        // experts: [rows][top_k]
    const float* first_weight;  // [width] or null
    const float* residual;      // [rows][width] or null; may be the stream
    float* stream;              // [rows][width] or null
    const float* weight;        // [width] or null
    RowTarget output;
    const uint32_t* count;      // rows in use
    uint32_t width;
    uint32_t top_k;
    float first_eps;
    float eps;
};

// Rule 4's norm of a row in shared memory. All threads call, and may have written the row just before.
__device__ __forceinline__ float block_norm_scale(const float* row, float* lanes, uint32_t width, float eps) {
    __syncthreads();
    const uint32_t thread = threadIdx.x;
    if (thread < 64) {
        float lane = 0.0f;
        const uint32_t whole = width / 64;
        const float* own = row + thread;
#pragma unroll 16
        for (uint32_t i = 0; i < whole; ++i) {
            float x = own[i * 64];
            lane = fmaf(x, x, lane);
        }
        if (whole * 64 + thread < width) {
            float x = own[whole * 64];
            lane = fmaf(x, x, lane);
        }
        lanes[thread] = lane;
    }
    __syncthreads();
    // Every warp folds for itself.
    return norm_scale(fold_lanes(lanes[thread % 32], lanes[thread % 32 + 32]), width, eps);
}

// Threads: a multiple of 64, times 4 × items at least the written width. Shared: width floats, rounded up to four.
template <RowForm form, int items>
__device__ __forceinline__ void norm_row(const NormParams& p) {
    POLYLINK_DYNAMIC_SHARED(float4, shared);
    __shared__ float lanes[64];
    pdl_launch();
    const uint32_t row = blockIdx.x, width = p.width, thread = threadIdx.x, threads = blockDim.x;
    const bool fours = in_fours(width);
    auto column = [&](int item) { return (item * threads + thread) * 4; };
    float4 weight[items];
#pragma unroll
    for (int item = 0; item < items; ++item) {
        weight[item] = p.weight ? load_four(p.weight, column(item), width, fours) : make_float4(1.0f, 1.0f, 1.0f, 1.0f);
    }
    pdl_wait();
    if (row >= *p.count) return;

    float4 x[items];
    if (p.places) {
#pragma unroll
        for (int item = 0; item < items; ++item) x[item] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        for (uint32_t choice = 0; choice < p.top_k; ++choice) {
            const uint32_t place = p.places[row * p.top_k + choice];
            if (place == PLACE_NONE) continue;
            const float share = p.shares[row * p.top_k + choice];
            const float* from = p.input + (uint64_t)place * width;
#pragma unroll
            for (int item = 0; item < items; ++item) {
                x[item] = plus(x[item], times(load_four(from, column(item), width, fours), share));
            }
        }
    } else {
        const float* from = p.input + (uint64_t)(p.gather ? p.gather[row] : row) * width;
#pragma unroll
        for (int item = 0; item < items; ++item) x[item] = load_four(from, column(item), width, fours);
    }
    if (p.first_weight) {
#pragma unroll
        for (int item = 0; item < items; ++item) {
            if (column(item) < width) shared[column(item) / 4] = x[item];
        }
        const float scale = block_norm_scale(reinterpret_cast<float*>(shared), lanes, width, p.first_eps);
#pragma unroll
        for (int item = 0; item < items; ++item) {
            x[item] = times(times(x[item], scale), load_four(p.first_weight, column(item), width, fours));
        }
    }
    if (p.residual) {
        const float* from = p.residual + (uint64_t)row * width;
#pragma unroll
        for (int item = 0; item < items; ++item) {
            x[item] = plus(load_four(from, column(item), width, fours), x[item]);
        }
    }
    if (p.stream) {
        float* to = p.stream + (uint64_t)row * width;
#pragma unroll
        for (int item = 0; item < items; ++item) store_floats(to, column(item), width, fours, x[item]);
    }
    if (!p.output.data) return;
    if (p.weight) {
#pragma unroll
        for (int item = 0; item < items; ++item) {
            if (column(item) < width) shared[column(item) / 4] = x[item];
        }
        const float scale = block_norm_scale(reinterpret_cast<float*>(shared), lanes, width, p.eps);
#pragma unroll
        for (int item = 0; item < items; ++item) x[item] = times(times(x[item], scale), weight[item]);
    }
#pragma unroll
    for (int item = 0; item < items; ++item) store_four<form>(p.output, row, column(item), width, x[item]);
}

}  // namespace polylink

using polylink::RowForm;

#define POLYLINK_NORM(name, form, items)                                                                                 \
    extern "C" __global__ void __launch_bounds__(1024) name(const __grid_constant__ polylink::NormParams p) {            \
        polylink::norm_row<form, items>(p);                                                                              \
    }

POLYLINK_NORM(norm_f32_4, RowForm::F32, 4)
POLYLINK_NORM(norm_bf16_4, RowForm::Bf16Tiled, 4)
POLYLINK_NORM(norm_q8_4, RowForm::Q8, 4)
POLYLINK_NORM(norm_f32_1, RowForm::F32, 1)
POLYLINK_NORM(norm_bf16_1, RowForm::Bf16Tiled, 1)
POLYLINK_NORM(norm_q8_1, RowForm::Q8, 1)
