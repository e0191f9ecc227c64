// Row-wise kernels beside the norms: gates, soft caps, sketches.
//
// Everything is the CPU's bits (docs/numerics.md); rows at or beyond the count are left alone.
#include "row_store.cuh"

#include <cuda_fp16.h>

namespace polylink {

struct GatedParams {
    const float* input;  // [rows][2 × width]: gate, then up
    RowTarget output;
    const uint32_t* count;
    uint32_t width;
    uint32_t spare;
};

template <RowForm form, bool gelu>
__device__ __forceinline__ void gated_four(const GatedParams& p) {
    pdl_launch();
    const uint32_t row = blockIdx.x, width = p.width, col = (blockIdx.y * blockDim.x + threadIdx.x) * 4;
    pdl_wait();
    // There is memory for all rows of the launch: they are asked for while the count is on its way.
    const bool fours = in_fours(width);
    const float* from = p.input + (uint64_t)row * 2 * width;
    float4 gate = load_four(from, col, width, fours), up = load_four(from + width, col, width, fours);
    if (row >= *p.count) return;
    if (gelu) {
        gate = make_float4(exact_gelu_tanh(gate.x), exact_gelu_tanh(gate.y), exact_gelu_tanh(gate.z), exact_gelu_tanh(gate.w));
    } else {
        gate = make_float4(exact_silu(gate.x), exact_silu(gate.y), exact_silu(gate.z), exact_silu(gate.w));
    }
    store_four<form>(p.output, row, col, width, times(gate, up));
}

struct SoftCapParams {
    float* values;  // [rows][width], in place
    const uint32_t* count;
    uint32_t width;
    float cap;
};

constexpr uint32_t SKETCH_VALUES = 8;
constexpr uint32_t SKETCH_CHUNK = 4096;
constexpr uint32_t SKETCH_THREADS = 64 * SKETCH_VALUES;

struct SketchParams {
    const float* input;        // [rows][width]
    const uint64_t* keys;      // [rows]: of the signs
    const uint32_t* positions; // [rows]: of the token to be drawn
    uint16_t* output;          // [rows][8] f16
    const uint32_t* count;
    uint32_t width;
    uint32_t spare;
};

// Nearest even; beyond ±65504 it is that.
__device__ __forceinline__ uint16_t to_f16_saturating(float x) {
    if (x != x) return 0x7e00;
    return __half_as_ushort(__float2half_rn(fminf(fmaxf(x, -65504.0f), 65504.0f)));
}

}  // namespace polylink

using namespace polylink;

#define POLYLINK_GATED(name, form, gelu)                                                                    \
    extern "C" __global__ void __launch_bounds__(256) name(const __grid_constant__ GatedParams p) {         \
        gated_four<form, gelu>(p);                                                                          \
    }

POLYLINK_GATED(gated_silu_f32, RowForm::F32, false)
POLYLINK_GATED(gated_silu_bf16, RowForm::Bf16Tiled, false)
POLYLINK_GATED(gated_silu_q8, RowForm::Q8, false)
POLYLINK_GATED(gated_gelu_f32, RowForm::F32, true)
POLYLINK_GATED(gated_gelu_bf16, RowForm::Bf16Tiled, true)
POLYLINK_GATED(gated_gelu_q8, RowForm::Q8, true)

// A grid of rows × stretches of columns, four per thread; so are the gates'.
extern "C" __global__ void __launch_bounds__(256) soft_cap(const __grid_constant__ SoftCapParams p) {
    pdl_launch();
    pdl_wait();
    const uint32_t row = blockIdx.x, col = (blockIdx.y * blockDim.x + threadIdx.x) * 4;
    if (col >= p.width) return;
    float* values = p.values + (uint64_t)row * p.width;
    const bool fours = in_fours(p.width);
    const float4 x = load_four(values, col, p.width, fours);
    if (row >= *p.count) return;
    const float4 capped = make_float4(exact_soft_cap(x.x, p.cap), exact_soft_cap(x.y, p.cap), exact_soft_cap(x.z, p.cap),
                                      exact_soft_cap(x.w, p.cap));
    store_floats(values, col, p.width, fours, capped);
}

// A block of 512 threads per row: 8 projections, 64 lanes each (rule 4).
extern "C" __global__ void __launch_bounds__(SKETCH_THREADS) sketch(const __grid_constant__ SketchParams p) {
    __shared__ float values[SKETCH_CHUNK];
    __shared__ uint4 signs[SKETCH_CHUNK / 16];
    __shared__ float lanes[SKETCH_THREADS];
    pdl_launch();
    const uint32_t row = blockIdx.x, thread = threadIdx.x, projection = thread / 64, lane = thread % 64;
    pdl_wait();
    if (row >= *p.count) return;
    const uint64_t key = p.keys[row];
    const uint32_t position = p.positions[row];
    const float* from = p.input + (uint64_t)row * p.width;
    float sum = 0.0f;
    for (uint32_t begin = 0; begin < p.width; begin += SKETCH_CHUNK) {
        const uint32_t count = min(SKETCH_CHUNK, p.width - begin);
        __syncthreads();
        for (uint32_t i = thread; i < count; i += SKETCH_THREADS) values[i] = from[begin + i];
        for (uint32_t block = thread; block * 16 < count; block += SKETCH_THREADS) {
            const Words4 words = philox_4x32_10(position, begin / 16 + block, 0, 0, key);
            signs[block] = make_uint4(words.word[0], words.word[1], words.word[2], words.word[3]);
        }
        __syncthreads();
        const uint8_t* bytes = reinterpret_cast<const uint8_t*>(signs);
#pragma unroll 8
        for (uint32_t i = lane; i < count; i += 64) {
            const uint32_t minus = ((uint32_t)bytes[i] >> projection & 1u) << 31;
            sum = __fadd_rn(sum, from_bits(to_bits(values[i]) ^ minus));
        }
    }
    lanes[thread] = sum;
    __syncthreads();
    if (thread < 32 * SKETCH_VALUES) {
        const uint32_t which = thread / 32, half = which * 64 + thread % 32;
        const float total = fold_lanes(lanes[half], lanes[half + 32]);
        if (thread % 32 == 0) p.output[(uint64_t)row * SKETCH_VALUES + which] = to_f16_saturating(total);
    }
}
