// The exact functions under the emulator.
#include "emulator.h"

#include "../exact_math.cu"

extern "C" void emulated_launch(uint32_t, const uint32_t* grid, uint32_t block, const void* args) {
    emulator::launch(polylink::exact_math, Dim3{grid[0], grid[1], grid[2]}, block, args);
}
