// What attention_tools.cuh is made of, under the emulator. Copies come when they are waited for. Products are summed one after
// the other, input by input; what tensor cores do within 16 of them nobody states.
#pragma once

#include "exact.h"

inline uint32_t max(uint32_t a, uint32_t b) { return a > b ? a : b; }

template <class T>
T __ldg(const T* at) {
    return *at;
}

template <class T>
T __ldcg(const T* at) {
    return *at;
}

inline bool __any_sync(uint32_t mask, bool value) { return __ballot_sync(mask, value) != 0; }

namespace emulator {

struct LateCopy {
    uint32_t to;
    uint8_t bytes[16];
};

// By thread: groups of copies, the last of them not committed. What is read is read at once: a cache that another kernel still
// writes is not emulated.
inline std::vector<std::vector<std::vector<LateCopy>>> late;

inline std::vector<std::vector<LateCopy>>& own_copies() {
    late.resize(fibers.size());
    std::vector<std::vector<LateCopy>>& own = late[current->thread.x];
    own.resize(own.empty() ? 1 : own.size());
    return own;
}

inline void check(bool good, const char* what, uint64_t at) {
    if (!good) {
        fprintf(stderr, "emulator: thread %u: %s at %llu\n", current->thread.x, what, (unsigned long long)at);
        abort();
    }
}

inline float half_of(uint64_t words, int half) { return __uint_as_float((uint32_t)(words >> (16 * half)) << 16); }

inline uint32_t round_bf16(float x) {
    const uint32_t bits = __float_as_uint(x);
    return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

}  // namespace emulator

namespace polylink {

inline float fast_ex2(float x) { return exp2f(x); }
inline float fast_reciprocal(float x) { return 1.0f / x; }

inline uint32_t shared_address(const void* pointer) {
    return (uint32_t)(static_cast<const uint8_t*>(pointer) - emulator::dynamic_shared);
}

inline void copy_async(uint32_t to, const void* from, uint32_t bytes) {
    emulator::check(to % 16 == 0 && to + 16 <= sizeof(emulator::dynamic_shared), "a copy to", to);
    emulator::check((uintptr_t)from % 16 == 0, "a copy from", (uintptr_t)from);
    emulator::LateCopy copy = {to, {}};
    memcpy(copy.bytes, from, bytes);
    emulator::own_copies().back().push_back(copy);
}

inline void copies_commit() { emulator::own_copies().emplace_back(); }

template <int PENDING>
void copies_wait() {
    auto& own = emulator::own_copies();
    while (own.size() > PENDING + 1) {
        for (const emulator::LateCopy& copy : own.front()) {
            memcpy(emulator::dynamic_shared + copy.to, copy.bytes, 16);
        }
        own.erase(own.begin());
    }
}

inline void load_matrices(uint32_t (&m)[4], uint32_t address) {
    emulator::check(address % 16 == 0 && address + 16 <= sizeof(emulator::dynamic_shared), "a row of a matrix", address);
    exact::load_matrices<4>(m, address);
}

// Lane l gets column l / 4 of each matrix: of rows 2 (l % 4) and the next.
inline void load_matrices_turned(uint32_t (&m)[4], uint32_t address) {
    emulator::check(address % 16 == 0 && address + 16 <= sizeof(emulator::dynamic_shared), "a row of a matrix", address);
    const uint64_t* rows = emulator::of_all(address);
    const uint32_t lane = threadIdx.x % 32;
    for (int i = 0; i < 4; ++i) {
        uint16_t halves[2];
        for (int j = 0; j < 2; ++j) {
            memcpy(&halves[j], emulator::dynamic_shared + (uint32_t)rows[8 * i + lane % 4 * 2 + j] + lane / 4 * 2, 2);
        }
        m[i] = halves[0] | (uint32_t)halves[1] << 16;
    }
}

// m16n8k16 (PTX ISA): lane l holds of a rows l / 4 and l / 4 + 8, inputs 2 (l % 4) on and 8 further; of b the same inputs of
// column l / 4; of c these rows, columns 2 (l % 4) and the next.
inline void mma_bf16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    uint64_t low[32], high[32], right[32];
    memcpy(low, emulator::of_all(emulator::both(a[0], a[2])), sizeof(low));
    memcpy(high, emulator::of_all(emulator::both(a[1], a[3])), sizeof(high));
    memcpy(right, emulator::of_all(emulator::both(b0, b1)), sizeof(right));
    const uint32_t g = threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    for (uint32_t v = 0; v < 4; ++v) {
        const uint64_t* left = v < 2 ? low : high;
        for (uint32_t k = 0; k < 16; ++k) {
            const uint32_t holder = k % 8 / 2;
            const int half = (int)(k / 8 * 2 + k % 2);
            c[v] += emulator::half_of(left[4 * g + holder], half) * emulator::half_of(right[4 * (column + v % 2) + holder], half);
        }
    }
}

inline uint32_t pack_bf16(float low, float high) {
    return emulator::round_bf16(low) | emulator::round_bf16(high) << 16;
}

inline uint32_t load_shared(uint32_t address) {
    emulator::check(address % 4 == 0 && address + 4 <= sizeof(emulator::dynamic_shared), "a word of shared memory", address);
    uint32_t word;
    memcpy(&word, emulator::dynamic_shared + address, 4);
    return word;
}

inline void store_shared(uint32_t address, const uint4& words) {
    emulator::check(address % 16 == 0 && address + 16 <= sizeof(emulator::dynamic_shared), "words of shared memory", address);
    memcpy(emulator::dynamic_shared + address, &words, 16);
}

inline uint32_t multiply_bf16(uint32_t a, uint32_t b) {
    uint32_t product = 0;
    for (int half = 0; half < 2; ++half) {
        const float exact = emulator::half_of(a, half) * emulator::half_of(b, half);
        product |= (emulator::round_bf16(exact) & 0xffffu) << (16 * half);
    }
    return product;
}

inline uint32_t arrive_at(uint32_t* counter) { return atomicAdd(counter, 1u); }

template <int THREADS>
void meet_at_1() {
    emulator::check(false, "a barrier of some warps, which is not emulated,", 1);
}

}  // namespace polylink
