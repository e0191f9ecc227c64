// The exact families' kernels under the emulator.
#define POLYLINK_EMULATED
#include "exact.h"

#include "../attention_exact.cu"
#include "../gemm_f32.cu"
#include "../gemm_int8.cuh"

namespace {

using namespace polylink;
using namespace polylink::exact;

template <class Tile>
void int8(const Int8Params p) {
    Tile::run(p, emulator::dynamic_shared);
}

struct Kernel {
    const char* module;
    const char* name;
    void (*launch)(Dim3 grid, uint32_t block, const void* args);
};

template <class Args, void (*kernel)(Args)>
void launch(Dim3 grid, uint32_t block, const void* args) {
    emulator::launch(kernel, grid, block, args);
}

#undef POLYLINK_INT8_KERNEL
#define POLYLINK_INT8_KERNEL(name, Form, MT, NT, WM, WN, EIGHT, SPLIT, STAGES) \
    {#Form, #name, launch<const Int8Params, int8<Int8Tile<Form, MT, NT, WM, WN, EIGHT, SPLIT, STAGES>>>},
#define FLOATS(name) {"gemm_f32", #name, launch<const FloatParams, name>},
#define ATTENTION(name) {"attention_exact", #name, launch<const ExactAttentionParams, name>},

const Kernel KERNELS[] = {
    POLYLINK_INT8_KERNELS(Q8_0) POLYLINK_INT8_KERNELS(Q4_0) POLYLINK_INT8_KERNELS(Q4_K) POLYLINK_INT8_KERNELS(Q5_K)
    POLYLINK_INT8_KERNELS(Q6_K)
    FLOATS(f32_rows_1) FLOATS(f32_rows_8) FLOATS(f32_rows_64) FLOATS(f32_rows_128)
    FLOATS(bf16_rows_1) FLOATS(bf16_rows_8) FLOATS(bf16_rows_64) FLOATS(bf16_rows_128)
    ATTENTION(attention_f32_128) ATTENTION(attention_f32_256) ATTENTION(attention_f32_512)
    ATTENTION(attention_bf16_128) ATTENTION(attention_bf16_256) ATTENTION(attention_bf16_512)
    ATTENTION(attention_int8_128) ATTENTION(attention_int8_256) ATTENTION(attention_int8_512)
    ATTENTION(attention_fp8_128) ATTENTION(attention_fp8_256) ATTENTION(attention_fp8_512)
    ATTENTION(attention_fold)
};

}  // namespace

// Its only symbol: the state of the emulator is not shared with other libraries that hold one. Runs a kernel by its name; 0 if there is none.
// Module `gemm_q8_0` is the form `Q8_0`. What lies beyond the shared memory asked for must not be written.
extern "C" __attribute__((visibility("default"))) int emulated_launch(const char* module, const char* name,
                                                                      const uint32_t* grid, uint32_t block, uint32_t shared,
                                                                      const void* args) {
    for (const Kernel& kernel : KERNELS) {
        const char* wanted = strncmp(module, "gemm_q", 6) == 0 ? module + 5 : module;
        if (strcasecmp(kernel.module, wanted) == 0 && strcmp(kernel.name, name) == 0) {
            // What nobody writes is not to be used: NaN.
            memset(emulator::dynamic_shared, 0xff, sizeof(emulator::dynamic_shared));
            kernel.launch(Dim3{grid[0], grid[1], grid[2]}, block, args);
            for (uint32_t at = shared; at < sizeof(emulator::dynamic_shared); ++at) {
                if (emulator::dynamic_shared[at] != 0xff) {
                    fprintf(stderr, "emulator: %s wrote byte %u of %u of shared memory\n", name, at, shared);
                    abort();
                }
            }
            return 1;
        }
    }
    return 0;
}
