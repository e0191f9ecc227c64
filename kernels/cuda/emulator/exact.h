// What exact_tools.cuh is made of, under the emulator: copies come at once, matrix instructions as the PTX ISA describes them.
#pragma once

#include "emulator.h"

#define POLYLINK_BULK

struct alignas(8) ushort4 {
    uint16_t x, y, z, w;
};

namespace emulator {

// What all lanes of the warp give.
inline const uint64_t* of_all(uint64_t value) {
    Warp& warp = warps[current->thread.x / 32];
    const uint32_t turn = current->warp_barriers % 2;
    exchange(value, current->thread.x);
    return warp.values[turn];
}

inline uint64_t both(uint32_t low, uint32_t high) { return low | (uint64_t)high << 32; }

}  // namespace emulator

inline float __int_as_float(int bits) { return __uint_as_float((uint32_t)bits); }

template <class T>
T __shfl_down_sync(uint32_t, T value, uint32_t distance) {
    const uint32_t lane = threadIdx.x % 32;
    return emulator::exchange(value, lane + distance < 32 ? lane + distance : lane);
}

inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
    uint32_t result = 0;
    for (int i = 0; i < 4; ++i) {
        result |= (uint32_t)(uint8_t)(emulator::both(low, high) >> (selector >> (4 * i) & 7) * 8) << (8 * i);
    }
    return result;
}

namespace polylink::exact {

inline uint32_t shared_address(const void* pointer) {
    return (uint32_t)(static_cast<const uint8_t*>(pointer) - emulator::dynamic_shared);
}

template <int bytes>
void copy(uint32_t to, const void* from) {
    if (to % bytes != 0 || reinterpret_cast<uint64_t>(from) % bytes != 0 || to + bytes > sizeof(emulator::dynamic_shared)) {
        fprintf(stderr, "emulator: %d bytes from %p to shared %u\n", bytes, from, to);
        abort();
    }
    memcpy(emulator::dynamic_shared + to, from, bytes);
}

inline void copy_16(uint32_t to, const void* from) { copy<16>(to, from); }
inline void copy_4(uint32_t to, const void* from) { copy<4>(to, from); }
// A barrier in shared memory: arrivals per phase, those that are missing, phases that are complete.
struct Barrier {
    uint16_t arrivals, missing;
    uint32_t phase;
};

inline Barrier& barrier_at(uint32_t address) { return *reinterpret_cast<Barrier*>(emulator::dynamic_shared + address); }
inline void barrier_init(uint32_t barrier, uint32_t arrivals) {
    barrier_at(barrier) = {(uint16_t)arrivals, (uint16_t)arrivals, 0};
}
inline void barrier_init_fence() {}
inline void fence_async_global() {}
inline void barrier_arrive(uint32_t barrier) {
    Barrier& at = barrier_at(barrier);
    if (--at.missing == 0) {
        at.missing = at.arrivals;
        ++at.phase;
    }
}
// Bytes are not counted: a thread that waits lets all others come to their own waiting first.
inline void barrier_arrive_bytes(uint32_t barrier, uint32_t) { barrier_arrive(barrier); }
inline void barrier_wait(uint32_t barrier, uint32_t parity) {
    emulator::wait(emulator::RUNS);
    while (barrier_at(barrier).phase % 2 == parity) {
        emulator::wait(emulator::RUNS);
    }
}
inline void copy_bulk(uint32_t to, const void* from, uint32_t bytes, uint32_t) {
    if (to % 16 != 0 || reinterpret_cast<uint64_t>(from) % 16 != 0 || bytes % 16 != 0) {
        fprintf(stderr, "emulator: a bulk copy of %u bytes from %p to shared %u\n", bytes, from, to);
        abort();
    }
    memcpy(emulator::dynamic_shared + to, from, bytes);
}

inline void copies_commit() {}
template <int>
void copies_wait() {}

// ldmatrix: lanes 8 i … 8 i + 7 give the rows of matrix i; lane l gets word l % 4 of row l / 4 of each.
template <int count>
void load_matrices(uint32_t* words, uint32_t address) {
    const uint64_t* rows = emulator::of_all(address);
    const uint32_t lane = threadIdx.x % 32;
    for (int i = 0; i < count; ++i) {
        memcpy(&words[i], emulator::dynamic_shared + (uint32_t)rows[8 * i + lane / 4] + lane % 4 * 4, 4);
    }
}

inline void load_rows_16(uint32_t (&a)[4], uint32_t address) { load_matrices<4>(a, address); }

inline void load_rows_8(uint32_t (&a)[4], uint32_t address) {
    uint32_t words[2];
    load_matrices<2>(words, address);
    a[0] = words[0];
    a[1] = 0;
    a[2] = words[1];
    a[3] = 0;
}

inline void load_rows_8_wide(uint32_t (&words)[4], uint32_t address) { load_matrices<4>(words, address); }

inline int dot_4(uint32_t a, uint32_t b) {
    int sum = 0;
    for (int i = 0; i < 32; i += 8) {
        sum += (int8_t)(a >> i) * (int8_t)(b >> i);
    }
    return sum;
}

// The right operand's column n is held by lanes 4 n … 4 n + 3, the left one's row g by lanes 4 g …: inputs 4 (lane % 4) on.
inline void multiply_16(int (&sum)[4], uint32_t a0, uint32_t a1, uint32_t b, int start) {
    uint64_t left[32], right[32];
    memcpy(left, emulator::of_all(emulator::both(a0, a1)), sizeof(left));
    memcpy(right, emulator::of_all(b), sizeof(right));
    const uint32_t g = threadIdx.x % 32 / 4, c = threadIdx.x % 4;
    for (uint32_t v = 0; v < 4; ++v) {
        sum[v] = start;
        for (uint32_t k = 0; k < 4; ++k) {
            sum[v] += dot_4((uint32_t)(left[g * 4 + k] >> (v / 2 * 32)), (uint32_t)right[(2 * c + v % 2) * 4 + k]);
        }
    }
}

inline void multiply_32(int (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, int start) {
    int low[4];
    multiply_16(low, a[0], a[1], b0, start);
    multiply_16(sum, a[2], a[3], b1, 0);
    for (int v = 0; v < 4; ++v) {
        sum[v] += low[v];
    }
}

inline float widen_half(uint16_t bits) {
    const uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 0) {
        const float value = (float)fraction * 5.9604644775390625e-8f;
        return sign != 0 ? -value : value;
    }
    return __uint_as_float(sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13);
}

inline float2 widen(const uint8_t* at) {
    uint16_t halves[2];
    memcpy(halves, at, 4);
    return {widen_half(halves[0]), widen_half(halves[1])};
}

}  // namespace polylink::exact
