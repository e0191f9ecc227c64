// The sampler's kernels under the emulator.
#include "emulator.h"

#include "../sampler.cu"
#include "../sampler_cut.cu"
#include "../sampler_logprobs.cu"

extern "C" void emulated_launch(uint32_t kernel, const uint32_t* grid, uint32_t block, const void* args) {
    void (*const kernels[])(polylink::SampleArgs) = {
        polylink::sampler_adjust, polylink::sampler_scan,     polylink::sampler_weigh,  polylink::sampler_cut,
        polylink::sampler_draw,   polylink::sampler_logprobs, polylink::sampler_finish,
    };
    emulator::launch(kernels[kernel], Dim3{grid[0], grid[1], grid[2]}, block, args);
}
