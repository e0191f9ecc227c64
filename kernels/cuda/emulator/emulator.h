// Runs kernels on the CPU, for tests on machines without a GPU: a block's threads are fibers that change over at barriers.
//
// What is emulated: barriers, shuffles of whole warps, atomic additions and exchanges, shared memory, the rounded operations.
// Threads run in a new order after each barrier, so that what lacks a barrier is likely to show; a barrier that not all
// threads reach ends the process with a message. What is not: races within a warp, memory's order, the hardware's limits.
// Linux on x86-64. Compile with -ffp-contract=off.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#define __device__
#define __host__
#define __global__
#define __shared__ static __attribute__((aligned(8)))  // no more than for words of 8 bytes: accidents are to show
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define POLYLINK_DYNAMIC_SHARED(type, name) type* const name = reinterpret_cast<type*>(emulator::dynamic_shared)

struct alignas(16) float4 {
    float x, y, z, w;
};

inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct alignas(8) float2 {
    float x, y;
};

struct alignas(8) uint2 {
    uint32_t x, y;
};

struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};

struct uchar2 {
    uint8_t x, y;
};

struct char2 {
    int8_t x, y;
};

inline float2 make_float2(float x, float y) { return {x, y}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline uint32_t min(uint32_t a, uint32_t b) { return a < b ? a : b; }

struct Dim3 {
    uint32_t x, y, z;
};

namespace emulator {

constexpr size_t STACK = 64 << 10;

alignas(128) inline uint8_t dynamic_shared[232448];

enum State { RUNS, WAITS_FOR_BLOCK, WAITS_FOR_WARP, ENDED };

struct Fiber {
    void* stack_pointer;
    char* stack;
    Dim3 thread;
    State state;
    uint32_t block_barriers, warp_barriers;
};

struct Warp {
    uint64_t values[2][32];
};

inline std::vector<Fiber> fibers;
inline std::vector<Warp> warps;
inline uint32_t any[2];
inline Fiber* current;
inline void* scheduler;
inline Dim3 grid, block_index, block_size;
inline void (*body)();

extern "C" void emulator_switch(void** save, void* load);
asm(R"(
.text
.local emulator_switch
.type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

inline void wait(State state) {
    current->state = state;
    emulator_switch(&current->stack_pointer, scheduler);
}

inline void run_fiber() {
    body();
    current->state = ENDED;
    emulator_switch(&current->stack_pointer, scheduler);
    abort();
}

inline void start(Fiber& fiber) {
    uint64_t* top = reinterpret_cast<uint64_t*>(fiber.stack + STACK);
    *--top = 0;  // keeps the stack aligned as after a call
    *--top = reinterpret_cast<uint64_t>(&run_fiber);
    for (int i = 0; i < 6; ++i) {
        *--top = 0;
    }
    fiber.stack_pointer = top;
    fiber.state = RUNS;
    fiber.block_barriers = fiber.warp_barriers = 0;
}

inline void run_block() {
    uint32_t count = block_size.x;
    for (uint32_t i = 0; i < count; ++i) {
        fibers[i].thread = {i, 0, 0};
        start(fibers[i]);
    }
    any[0] = any[1] = 0;
    uint32_t order = 1;
    for (;;) {
        order = order * 1664525u + 1013904223u;
        uint32_t first = order >> 8, up = order >> 4 & 1;
        bool ran = false;
        for (uint32_t i = 0; i < count; ++i) {
            Fiber& fiber = fibers[(first + (up ? i : count - i)) % count];
            if (fiber.state == RUNS) {
                ran = true;
                current = &fiber;
                emulator_switch(&scheduler, fiber.stack_pointer);
            }
        }
        uint32_t ended = 0, waiting = 0;
        for (uint32_t i = 0; i < count; ++i) {
            ended += fibers[i].state == ENDED;
            waiting += fibers[i].state == WAITS_FOR_BLOCK;
        }
        if (ended == count) {
            return;
        }
        if (waiting == count) {
            any[(fibers[0].block_barriers + 1) % 2] = 0;
            for (Fiber& fiber : fibers) {
                fiber.state = fiber.state == WAITS_FOR_BLOCK ? RUNS : fiber.state;
            }
            continue;
        }
        for (uint32_t warp = 0; warp < count / 32; ++warp) {
            Fiber* lanes = &fibers[warp * 32];
            uint32_t here = 0;
            for (uint32_t lane = 0; lane < 32; ++lane) {
                here += lanes[lane].state == WAITS_FOR_WARP;
            }
            for (uint32_t lane = 0; lane < 32 && here == 32; ++lane) {
                lanes[lane].state = RUNS;
                ran = true;
            }
        }
        if (!ran) {
            fprintf(stderr, "emulator: a barrier that %u of %u threads reached, %u have ended\n", waiting, count, ended);
            abort();
        }
    }
}

// Runs a kernel, block after block.
template <class Args>
void launch(void (*kernel)(Args), Dim3 blocks, uint32_t threads, const void* args) {
    static void (*running)(Args);
    static Args copy;
    running = kernel;
    memcpy(&copy, args, sizeof(Args));
    body = [] { running(copy); };
    grid = blocks;
    block_size = {threads, 1, 1};
    while (fibers.size() < threads) {
        Fiber fiber = {};
        fiber.stack = static_cast<char*>(aligned_alloc(64, STACK));
        fiber.state = ENDED;
        fibers.push_back(fiber);
    }
    warps.resize(fibers.size() / 32 + 1);
    for (uint32_t z = 0; z < blocks.z; ++z) {
        for (uint32_t y = 0; y < blocks.y; ++y) {
            for (uint32_t x = 0; x < blocks.x; ++x) {
                block_index = {x, y, z};
                run_block();
            }
        }
    }
}

template <class T>
T exchange(T value, uint32_t from) {
    Warp& warp = warps[current->thread.x / 32];
    uint32_t turn = current->warp_barriers++ % 2;
    memcpy(&warp.values[turn][current->thread.x % 32], &value, sizeof(T));
    wait(WAITS_FOR_WARP);
    T result;
    memcpy(&result, &warp.values[turn][from % 32], sizeof(T));
    return result;
}

}  // namespace emulator

#define threadIdx (emulator::current->thread)
#define blockIdx emulator::block_index
#define blockDim emulator::block_size
#define gridDim emulator::grid

inline void __syncthreads() {
    ++emulator::current->block_barriers;
    emulator::wait(emulator::WAITS_FOR_BLOCK);
}

inline int __syncthreads_or(int value) {
    uint32_t turn = ++emulator::current->block_barriers % 2;
    emulator::any[turn] |= value != 0;
    emulator::wait(emulator::WAITS_FOR_BLOCK);
    return emulator::any[turn];
}

template <class T>
T __shfl_xor_sync(uint32_t, T value, int distance) {
    return emulator::exchange(value, threadIdx.x % 32 ^ distance);
}

template <class T>
T __shfl_up_sync(uint32_t, T value, uint32_t distance) {
    uint32_t lane = threadIdx.x % 32;
    return emulator::exchange(value, lane >= distance ? lane - distance : lane);
}

template <class T>
T __shfl_sync(uint32_t, T value, uint32_t from) {
    return emulator::exchange(value, from);
}

inline void __syncwarp() { emulator::exchange(0u, 0); }

inline uint32_t __reduce_add_sync(uint32_t mask, uint32_t value) {
    for (int distance = 16; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(mask, value, distance);
    }
    return value;
}

inline uint32_t __ballot_sync(uint32_t, bool value) {
    emulator::Warp& warp = emulator::warps[threadIdx.x / 32];
    uint32_t turn = emulator::current->warp_barriers % 2, bits = 0;
    emulator::exchange((uint64_t)value, threadIdx.x);
    for (uint32_t lane = 0; lane < 32; ++lane) {
        bits |= (uint32_t)warp.values[turn][lane] << lane;
    }
    return bits;
}

inline int __popc(uint32_t value) { return __builtin_popcount(value); }
inline int __ffs(uint32_t value) { return __builtin_ffs(value); }

inline uint32_t atomicAdd(uint32_t* at, uint32_t value) {
    uint32_t old = *at;
    *at += value;
    return old;
}

inline uint64_t atomicAdd(unsigned long long* at, unsigned long long value) {
    uint64_t old = *at;
    *at += value;
    return old;
}

inline uint32_t atomicOr(uint32_t* at, uint32_t value) {
    uint32_t old = *at;
    *at |= value;
    return old;
}

inline uint32_t atomicMax(uint32_t* at, uint32_t value) {
    uint32_t old = *at;
    *at = value > old ? value : old;
    return old;
}

inline uint64_t atomicMax(unsigned long long* at, unsigned long long value) {
    uint64_t old = *at;
    *at = value > old ? value : old;
    return old;
}

inline uint32_t atomicExch(uint32_t* at, uint32_t value) {
    uint32_t old = *at;
    *at = value;
    return old;
}

inline float __uint_as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

inline uint32_t __float_as_uint(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline uint64_t __cvta_generic_to_shared(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __expf(float x) { return expf(x); }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return (uint64_t)a * b >> 32; }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) { return (unsigned __int128)a * b >> 64; }
