// What the attention kernels of sm_90 share, whose warps copy or compute: barriers in shared memory, and who takes which piece.
#pragma once

#include "attention_bf16.cuh"

namespace polylink {

__device__ __forceinline__ void barrier_init(uint64_t* barrier, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}

__device__ __forceinline__ void barrier_arrive(uint64_t* barrier) {
    asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared::cta.b64 state, [%0];\n}" ::"r"(shared_address(barrier)) : "memory");
}

// Until the phase of this parity is complete.
__device__ __forceinline__ void barrier_wait(uint64_t* barrier, uint32_t parity) {
    asm volatile(
        "{\n.reg .pred done;\n"
        "AGAIN:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra.uni DONE;\n"
        "bra.uni AGAIN;\n"
        "DONE:\n}" ::"r"(shared_address(barrier)),
        "r"(parity)
        : "memory");
}

// Counts one of the barrier's arrivals when all copies that this thread has started are complete.
__device__ __forceinline__ void barrier_arrive_after_copies(uint64_t* barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}

// Which piece a block takes in a round; none: false. They come by descending cost: every other round is dealt backwards.
__device__ __forceinline__ bool work_of(uint32_t round, uint32_t total, uint32_t& work) {
    work = round * gridDim.x + (round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
    return work < total;
}

__device__ __forceinline__ const uint4* words_of(const AttentionParams& p, uint32_t first, uint32_t work) {
    return (const uint4*)(p.plan + PLAN_HEADER_WORDS) + 2 * (first + work / p.kv_heads);
}

}  // namespace polylink
