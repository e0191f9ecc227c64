// Mixtures of experts around their products (docs/numerics.md, "Experts"; kernels/src/experts.rs is the definition).
//
//   route    every row's experts, ascending, and the shares of their products
//   place    the rows of every expert that is held, one after the other; counts for the grouped products
//   gather   rows to their places, in the form that the products read; few rows: all three at once
//   (products, then norms.cu adds what they leave, experts ascending)
//
// A row's choice c is number row × top_k + c. An expert's rows keep their order and begin at a multiple of 8 (the swizzle's
// period). Counts are integers, so that it does not matter in which order they are counted.
#include "row_store.cuh"

namespace polylink {

struct RouteParams {
    const float* logits;  // [rows][experts]
    uint32_t* chosen;     // [rows][top_k]
    float* shares;        // [rows][top_k]
    const uint32_t* count;
    uint32_t experts;
    uint32_t top_k;  // 1 … experts
    uint32_t normalise;
    uint32_t spare;
};

constexpr uint32_t ROUTE_WARPS = 4;
constexpr uint32_t ROUTE_KEYS = 8;

// Larger for larger logits, and of equal ones (0 and −0 too) for the lower expert; never 0.
__device__ __forceinline__ uint64_t route_key(float logit, uint32_t expert) {
    const uint32_t bits = to_bits(__fadd_rn(logit, 0.0f));
    const uint32_t ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (uint64_t)ordered << 32 | (uint32_t)~expert;
}

__device__ __forceinline__ uint64_t largest_key(uint64_t key) {
#pragma unroll
    for (int apart = 16; apart > 0; apart /= 2) {
        const uint64_t other = __shfl_xor_sync(0xffffffffu, key, apart);
        key = other > key ? other : key;
    }
    return key;
}

struct PlaceParams {
    const uint32_t* chosen;  // [rows][top_k]
    uint32_t* places;        // [rows][top_k]: the sorted row, or PLACE_NONE
    StepCounts* groups;      // [groups_max]: of the experts that were chosen, ascending; the rest of no rows
    uint32_t* total;         // sorted rows, gaps included
    const uint32_t* count;   // rows in use
    uint32_t top_k;
    uint32_t first;  // first expert held
    uint32_t held;
    uint32_t groups_max;
};

constexpr uint32_t PLACE_ALIGN = 8;
constexpr uint32_t PLACE_THREADS = 512;

struct GatherParams {
    const float* input;      // [rows][width]
    const uint32_t* places;  // [rows][top_k]
    RowTarget output;        // sorted rows
    const uint32_t* count;
    uint32_t top_k;
    uint32_t width;
};

// Sum over the block; all threads call and get it. `sums`: a word per warp.
__device__ __forceinline__ uint32_t block_sum(uint32_t value, uint32_t* sums) {
    value = __reduce_add_sync(0xffffffffu, value);
    __syncthreads();
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = value;
    __syncthreads();
    uint32_t total = 0;
    for (uint32_t warp = 0; warp < PLACE_THREADS / 32; ++warp) total += sums[warp];
    return total;
}

template <RowForm form>
__device__ __forceinline__ void gather_four(const GatherParams& p) {
    pdl_launch();
    pdl_wait();
    const uint32_t choice = blockIdx.x, row = choice / p.top_k, col = (blockIdx.y * blockDim.x + threadIdx.x) * 4;
    if (row >= *p.count) return;
    const uint32_t place = p.places[choice];
    if (place == PLACE_NONE) return;
    const float4 x = load_four(p.input + (uint64_t)row * p.width, col, p.width, in_fours(p.width));
    store_four<form>(p.output, place, col, p.width, x);
}

// A row's experts, by a warp. Keys are distinct: after top_k rounds the last one's key is what the chosen reach.
__device__ __forceinline__ void route_row(const RouteParams& p, uint32_t row, uint32_t* chosen, float* shares) {
    const uint32_t lane = threadIdx.x % 32;
    const float* logits = p.logits + (uint64_t)row * p.experts;
    // Of 256 experts a lane's keys stay in registers.
    uint64_t keys[ROUTE_KEYS], reached = ~0ull, first = 0;
#pragma unroll
    for (uint32_t i = 0; i < ROUTE_KEYS; ++i) {
        const uint32_t expert = i * 32 + lane;
        keys[i] = expert < p.experts ? route_key(logits[expert], expert) : 0;
    }
    for (uint32_t round = 0; round < p.top_k; ++round) {
        uint64_t best = 0;
#pragma unroll
        for (uint32_t i = 0; i < ROUTE_KEYS; ++i) {
            if (keys[i] < reached && keys[i] > best) best = keys[i];
        }
        for (uint32_t expert = ROUTE_KEYS * 32 + lane; expert < p.experts; expert += 32) {
            const uint64_t key = route_key(logits[expert], expert);
            if (key < reached && key > best) best = key;
        }
        reached = largest_key(best);
        if (round == 0) first = reached;
    }
    const float max = logits[~(uint32_t)first];
    float low = 0.0f, high = 0.0f, chosen_sum = 0.0f;
    uint32_t before = 0;
    for (uint32_t begin = 0; begin < p.experts; begin += 32) {
        const uint32_t expert = begin + lane;
        const bool there = expert < p.experts;
        const float logit = there ? logits[expert] : max;
        const float share = exact_exp(__fsub_rn(logit, max));
        const bool taken = there && route_key(logit, expert) >= reached;
        if (there && begin % 64 == 0) low = __fadd_rn(low, share);
        if (there && begin % 64 != 0) high = __fadd_rn(high, share);
        uint32_t mask = __ballot_sync(0xffffffffu, taken);
        if (taken) {
            const uint32_t at = before + __popc(mask & ((1u << lane) - 1));
            chosen[at] = expert;
            shares[at] = share;
        }
        before += __popc(mask);
        while (mask) {
            chosen_sum = __fadd_rn(chosen_sum, __shfl_sync(0xffffffffu, share, __ffs(mask) - 1));
            mask &= mask - 1;
        }
    }
    const float all = fold_lanes(low, high);
    const float total = p.normalise ? chosen_sum : all;
    __syncwarp();
    for (uint32_t at = lane; at < p.top_k; at += 32) {
        shares[at] = __fdiv_rn(shares[at], total);
    }
}

struct FewParams {
    RouteParams route;
    PlaceParams place;
    GatherParams gather;
};

constexpr uint32_t FEW_THREADS = 256;
constexpr uint32_t FEW_CHOICES = 64;

// Few rows (at most 8, and 64 choices): routed, placed and gathered in one launch. A block has 1024 columns to gather; each
// finds all rows' places by itself, the first one writes them.
template <RowForm form>
__device__ __forceinline__ void few_rows(const FewParams& p) {
    __shared__ uint32_t chosen[FEW_CHOICES], places[FEW_CHOICES], padded[FEW_CHOICES];
    __shared__ float shares[FEW_CHOICES];
    pdl_launch();
    pdl_wait();
    const uint32_t thread = threadIdx.x, warp = thread / 32, top_k = p.route.top_k, rows = *p.route.count;
    const uint32_t choices = rows * top_k;
    if (warp < rows) route_row(p.route, warp, chosen + warp * top_k, shares + warp * top_k);
    __syncthreads();
    const bool there = thread < choices;
    const uint32_t own = there ? chosen[thread] : 0, expert = own - p.place.first;
    const bool held = there && expert < p.place.held;
    uint32_t rank = 0, count = 0;
    for (uint32_t other = 0; other < choices; ++other) {
        count += chosen[other] == own;
        rank += chosen[other] == own && other < thread;
    }
    if (there) padded[thread] = held && rank == 0 ? (count + PLACE_ALIGN - 1) / PLACE_ALIGN * PLACE_ALIGN : 0;
    __syncthreads();
    uint32_t begin = 0, group = 0, total = 0, groups = 0;
    for (uint32_t other = 0; other < choices; ++other) {
        const bool before = chosen[other] < own;
        total += padded[other];
        groups += padded[other] > 0;
        begin += before ? padded[other] : 0;
        group += before && padded[other] > 0;
    }
    if (there) places[thread] = held ? begin + rank : PLACE_NONE;
    __syncthreads();
    if (blockIdx.x == 0) {
        if (there) {
            p.route.chosen[thread] = own;
            p.route.shares[thread] = shares[thread];
            p.place.places[thread] = places[thread];
        }
        if (held && rank == 0) {
            StepCounts counts = {};
            counts.rows = count;
            counts.wanted = count;
            counts.first_row = begin;
            counts.matrix = expert;
            p.place.groups[group] = counts;
        }
        for (uint32_t empty = groups + thread; empty < p.place.groups_max; empty += FEW_THREADS) {
            p.place.groups[empty] = StepCounts{};
        }
        if (thread == 0) *p.place.total = total;
    }
    const uint32_t col = (blockIdx.x * FEW_THREADS + thread) * 4, width = p.gather.width;
    for (uint32_t row = 0; row < rows; ++row) {
        const float4 x = load_four(p.gather.input + (uint64_t)row * width, col, width, in_fours(width));
        for (uint32_t choice = row * top_k; choice < (row + 1) * top_k; ++choice) {
            if (places[choice] != PLACE_NONE) store_four<form>(p.gather.output, places[choice], col, width, x);
        }
    }
}

}  // namespace polylink

using namespace polylink;

extern "C" __global__ void __launch_bounds__(32 * ROUTE_WARPS) experts_route(const __grid_constant__ RouteParams p) {
    pdl_launch();
    pdl_wait();
    const uint32_t row = blockIdx.x * ROUTE_WARPS + threadIdx.x / 32;
    if (row < *p.count) route_row(p, row, p.chosen + (uint64_t)row * p.top_k, p.shares + (uint64_t)row * p.top_k);
}

// A block per expert that is held; each counts all of them. Shared: `held` words.
extern "C" __global__ void __launch_bounds__(PLACE_THREADS) experts_place(const __grid_constant__ PlaceParams p) {
    POLYLINK_DYNAMIC_SHARED(uint32_t, rows_of);
    __shared__ uint32_t sums[PLACE_THREADS / 32];
    pdl_launch();
    const uint32_t own = blockIdx.x, thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    for (uint32_t expert = thread; expert < p.held; expert += PLACE_THREADS) rows_of[expert] = 0;
    pdl_wait();
    __syncthreads();
    const uint32_t choices = *p.count * p.top_k;
#pragma unroll 4
    for (uint32_t choice = thread; choice < choices; choice += PLACE_THREADS) {
        const uint32_t expert = p.chosen[choice] - p.first;
        if (expert < p.held) {
            atomicAdd(&rows_of[expert], 1u);
        } else if (own == 0) {
            p.places[choice] = PLACE_NONE;
        }
    }
    __syncthreads();
    // What lies before this expert's rows, and how many groups.
    uint32_t begin = 0, groups = 0;
    for (uint32_t expert = thread; expert < own; expert += PLACE_THREADS) {
        begin += (rows_of[expert] + PLACE_ALIGN - 1) / PLACE_ALIGN * PLACE_ALIGN;
        groups += rows_of[expert] > 0;
    }
    begin = block_sum(begin, sums);
    groups = block_sum(groups, sums);
    const uint32_t rows = rows_of[own];
    if (thread == 0 && rows > 0) {
        StepCounts counts = {};
        counts.rows = rows;
        counts.wanted = rows;
        counts.first_row = begin;
        counts.matrix = own;
        p.groups[groups] = counts;
    }
    if (own == p.held - 1) {
        for (uint32_t group = groups + (rows > 0) + thread; group < p.groups_max; group += PLACE_THREADS) {
            p.groups[group] = StepCounts{};
        }
        if (thread == 0) *p.total = begin + (rows + PLACE_ALIGN - 1) / PLACE_ALIGN * PLACE_ALIGN;
    }
    if (rows == 0) return;
    // Every warp has a stretch of the choices, goes through it once to count and once to place.
    const uint32_t stretch = (choices + PLACE_THREADS - 1) / PLACE_THREADS * 32;
    const uint32_t from = warp * stretch, to = min(choices, from + stretch);
    auto mine = [&](uint32_t at) { return at + lane < to && p.chosen[at + lane] == p.first + own; };
    uint32_t count = 0;
#pragma unroll 4
    for (uint32_t at = from; at < to; at += 32) count += __popc(__ballot_sync(0xffffffffu, mine(at)));
    __syncthreads();
    if (lane == 0) sums[warp] = count;
    __syncthreads();
    for (uint32_t other = 0; other < warp; ++other) begin += sums[other];
#pragma unroll 4
    for (uint32_t at = from; at < to; at += 32) {
        const bool placed = mine(at);
        const uint32_t mask = __ballot_sync(0xffffffffu, placed);
        if (placed) p.places[at + lane] = begin + __popc(mask & ((1u << lane) - 1));
        begin += __popc(mask);
    }
}

extern "C" __global__ void __launch_bounds__(256) experts_gather_f32(const __grid_constant__ GatherParams p) {
    gather_four<RowForm::F32>(p);
}

extern "C" __global__ void __launch_bounds__(256) experts_gather_bf16(const __grid_constant__ GatherParams p) {
    gather_four<RowForm::Bf16Tiled>(p);
}

extern "C" __global__ void __launch_bounds__(256) experts_gather_q8(const __grid_constant__ GatherParams p) {
    gather_four<RowForm::Q8>(p);
}

#define POLYLINK_FEW(name, form)                                                                             \
    extern "C" __global__ void __launch_bounds__(FEW_THREADS) name(const __grid_constant__ FewParams p) {    \
        few_rows<form>(p);                                                                                   \
    }

POLYLINK_FEW(experts_few_f32, RowForm::F32)
POLYLINK_FEW(experts_few_bf16, RowForm::Bf16Tiled)
POLYLINK_FEW(experts_few_q8, RowForm::Q8)
