// Rows of f32 as 8-bit activations (docs/numerics.md, rule 3; quantise.cuh), where no earlier kernel wrote them so.
#include "quantise.cuh"

namespace polylink {

struct QuantiseParams {
    const float* input;        // [rows][width]
    int8_t* quants;            // [rows][q8_pitch(width)]
    float* scales;             // [rows][q8_pitch(width) / 32]
    const StepCounts* counts;
    uint32_t rows;             // at most
    uint32_t wanted;           // not 0: the wanted rows
    uint32_t width;            // a multiple of 32
    uint32_t spare;
};

}  // namespace polylink

// Eight lanes a block of 32 values. Grid: any × rows.
extern "C" __global__ void __launch_bounds__(256) quantise_rows(const __grid_constant__ polylink::QuantiseParams p) {
    using namespace polylink;
    pdl_launch();
    pdl_wait();
    const uint32_t in_use = p.wanted != 0 ? p.counts->wanted : p.counts->rows, row = blockIdx.y;
    if (row >= in_use || row >= p.rows) {
        return;
    }
    const uint32_t pitch = q8_pitch(p.width), fours = p.width / 4;
    // Whole warps go round together: the shuffle wants all lanes.
    for (uint32_t first = blockIdx.x * 256 + threadIdx.x / 32 * 32; first < fours; first += gridDim.x * 256) {
        const uint32_t four = first + threadIdx.x % 32;
        float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (four < fours) {
            x = *reinterpret_cast<const float4*>(p.input + (uint64_t)row * p.width + four * 4);
        }
        const float scale = quantise_scale(largest_of_lanes<8>(magnitude_of_four(x)));
        if (four < fours) {
            *reinterpret_cast<uint32_t*>(p.quants + (uint64_t)row * pitch + four * 4) = quantise_four(x, scale);
            if (four % 8 == 0) {
                p.scales[(uint64_t)row * (pitch / 32) + four / 8] = scale;
            }
        }
    }
}
