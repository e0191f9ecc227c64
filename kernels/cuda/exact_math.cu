// The exact functions by themselves, for the test that holds them to protocol/src/exact_math.rs and noise.rs.

#include "common.cuh"

namespace polylink {

struct ExactMathArgs {
    const uint32_t* inputs;  // [count] bits of f32, or random bits
    uint32_t* outputs;       // [count] bits
    uint64_t key;            // of Philox
    uint32_t count;
    uint32_t function;       // as in the switch below
};

extern "C" __global__ void __launch_bounds__(256) exact_math(const __grid_constant__ ExactMathArgs args) {
    pdl_launch();
    pdl_wait();
    uint32_t index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= args.count) {
        return;
    }
    uint32_t bits = args.inputs[index], result = 0;
    float x = from_bits(bits);
    switch (args.function) {
        case 0: result = to_bits(exact_exp(x)); break;
        case 1: result = to_bits(exact_ln(x)); break;
        case 2: result = to_bits(exact_silu(x)); break;
        case 3: result = to_bits(exact_tanh(x)); break;
        case 4: result = to_bits(exact_gelu_tanh(x)); break;
        case 5: result = to_bits(exact_soft_cap(x, 30.0f)); break;
        case 6: result = to_bf16(x); break;
        case 7: result = to_bits(gumbel_from_bits(bits)); break;
        case 8: result = philox_4x32_10(bits, index, 0, 0, args.key).word[index % 4]; break;
    }
    args.outputs[index] = result;
}

}  // namespace polylink
