// The attention of tensor cores, as all devices run it, under the emulator.
#define POLYLINK_EMULATED
#include "attention.h"

#include "../attention_bf16.cu"
#undef ATTENTION
#include "../attention_fp8.cu"

namespace {

using namespace polylink;

struct Kernel {
    const char* name;
    void (*kernel)(const AttentionParams);
};

#define BOTH(name) {#name, name}, {#name "_cap", name##_cap}
#define ALL(cache, dim) BOTH(cache##_##dim##_narrow), BOTH(cache##_##dim##_wide)

const Kernel KERNELS[] = {
    ALL(attention_bf16, 64),  ALL(attention_bf16, 80), ALL(attention_bf16, 96), ALL(attention_bf16, 128),
    ALL(attention_bf16, 256), ALL(attention_fp8, 64),  ALL(attention_fp8, 80),  ALL(attention_fp8, 96),
    ALL(attention_fp8, 128),  ALL(attention_fp8, 256),
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
