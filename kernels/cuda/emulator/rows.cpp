// The row-wise kernels under the emulator. Tests find the numbers of kernels by their places in the list below.
#include "emulator.h"

#include "../append.cu"
#include "../embed.cu"
#include "../experts.cu"
#include "../norms.cu"
#include "../rows.cu"

namespace {

struct Kernel {
    void (*launch)(void (*)(), Dim3, uint32_t, const void*);
    void (*kernel)();
};

template <class Args>
Kernel kernel(const char*, void (*entry)(Args)) {
    auto launch = [](void (*entry)(), Dim3 grid, uint32_t block, const void* args) {
        emulator::launch(reinterpret_cast<void (*)(Args)>(entry), grid, block, args);
    };
    return {launch, reinterpret_cast<void (*)()>(entry)};
}

const Kernel& kernel_at(uint32_t number) {
    static const Kernel kernels[] = {
        kernel("soft_cap", soft_cap),
        kernel("sketch", sketch),
        kernel("gated_silu_f32", gated_silu_f32),
        kernel("gated_silu_bf16", gated_silu_bf16),
        kernel("gated_silu_q8", gated_silu_q8),
        kernel("gated_gelu_f32", gated_gelu_f32),
        kernel("gated_gelu_bf16", gated_gelu_bf16),
        kernel("gated_gelu_q8", gated_gelu_q8),
        kernel("embed_f32", embed_f32),
        kernel("embed_tiles", embed_tiles),
        kernel("embed_strips_f32", embed_strips_f32),
        kernel("embed_strips_bf16", embed_strips_bf16),
        kernel("embed_q8_0", embed_q8_0),
        kernel("embed_q4_0", embed_q4_0),
        kernel("embed_q4_k", embed_q4_k),
        kernel("embed_q5_k", embed_q5_k),
        kernel("embed_q6_k", embed_q6_k),
        kernel("norm_f32_4", norm_f32_4),
        kernel("norm_bf16_4", norm_bf16_4),
        kernel("norm_q8_4", norm_q8_4),
        kernel("norm_f32_1", norm_f32_1),
        kernel("norm_bf16_1", norm_bf16_1),
        kernel("norm_q8_1", norm_q8_1),
        kernel("head_norm", head_norm),
        kernel("append_f32_4", append_f32_4),
        kernel("append_bf16_4", append_bf16_4),
        kernel("append_int8_4", append_int8_4),
        kernel("append_fp8_4", append_fp8_4),
        kernel("append_fp8_paired_4", append_fp8_paired_4),
        kernel("append_f32_16", append_f32_16),
        kernel("append_bf16_16", append_bf16_16),
        kernel("append_int8_16", append_int8_16),
        kernel("append_fp8_16", append_fp8_16),
        kernel("append_fp8_paired_16", append_fp8_paired_16),
        kernel("experts_route", experts_route),
        kernel("experts_place", experts_place),
        kernel("experts_gather_f32", experts_gather_f32),
        kernel("experts_gather_bf16", experts_gather_bf16),
        kernel("experts_gather_q8", experts_gather_q8),
        kernel("experts_few_f32", experts_few_f32),
        kernel("experts_few_bf16", experts_few_bf16),
        kernel("experts_few_q8", experts_few_q8),
    };
    return kernels[number];
}

}  // namespace

extern "C" void emulated_launch(uint32_t number, const uint32_t* grid, uint32_t block, const void* args) {
    const Kernel& kernel = kernel_at(number);
    kernel.launch(kernel.kernel, Dim3{grid[0], grid[1], grid[2]}, block, args);
}
