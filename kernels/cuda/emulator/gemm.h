// What products of bf16 by mma.sync are made of, under the emulator; as attention's (attention.h).
#pragma once

#include "attention.h"

namespace polylink {

inline void copy_16(uint32_t to, const void* from) { copy_async(to, from, 16); }

inline void load_matrices_4(uint32_t (&r)[4], uint32_t address) { load_matrices(r, address); }

inline void load_matrices_2(uint32_t (&r)[2], uint32_t address) {
    emulator::check(address % 16 == 0 && address + 16 <= sizeof(emulator::dynamic_shared), "a row of a matrix", address);
    exact::load_matrices<2>(r, address);
}

inline void multiply(float* d, const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    float sums[4] = {d[0], d[1], d[2], d[3]};
    mma_bf16(sums, a, b[0], b[1]);
    memcpy(d, sums, sizeof(sums));
}

inline uint4 load_shared_16(uint32_t address) {
    emulator::check(address % 16 == 0 && address + 16 <= sizeof(emulator::dynamic_shared), "words of shared memory", address);
    uint4 words;
    memcpy(&words, emulator::dynamic_shared + address, 16);
    return words;
}

inline float load_shared_float(uint32_t address) { return __uint_as_float(load_shared(address)); }

// Of all the block's threads.
inline void named_barrier(uint32_t, uint32_t threads) {
    emulator::check(threads == blockDim.x, "a barrier of some warps, which is not emulated,", threads);
    __syncthreads();
}

}  // namespace polylink
