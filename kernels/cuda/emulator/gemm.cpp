// Products of bf16 by mma.sync, of weights of bf16 and of e4m3, under the emulator.
#define POLYLINK_EMULATED
#include "gemm.h"

#include "../gemm_bf16.cu"
#include "../gemm_fp8.cu"

namespace {

using namespace polylink;

struct Kernel {
    const char* name;
    void (*kernel)(const GemmParams);
};

#define KERNEL(name) {#name, name}

const Kernel KERNELS[] = {
    KERNEL(gemm_n8), KERNEL(gemm_n32), KERNEL(gemm_n64), KERNEL(gemm_fp8_n8), KERNEL(gemm_fp8_n32), KERNEL(gemm_fp8_n64),
};

}  // namespace

// Runs a kernel by its name; 0 if there is none. What lies beyond the shared memory asked for must not be written.
extern "C" __attribute__((visibility("default"))) int emulated_launch(const char*, const char* name, const uint32_t* grid,
                                                                      uint32_t block, uint32_t shared, const void* args) {
    for (const Kernel& kernel : KERNELS) {
        if (strcmp(kernel.name, name) == 0) {
            // What nobody writes is not to be used: NaN.
            memset(emulator::dynamic_shared, 0xff, sizeof(emulator::dynamic_shared));
            emulator::late.clear();
            emulator::launch(kernel.kernel, Dim3{grid[0], grid[1], grid[2]}, block, args);
            for (uint32_t at = shared; at < sizeof(emulator::dynamic_shared); ++at) {
                emulator::check(emulator::dynamic_shared[at] == 0xff, "shared memory is written", at);
            }
            return 1;
        }
    }
    return 0;
}
