// Wide tiles of attention on sm_90: the same sums as attention_bf16.cuh says, by wgmma, whose products and order of sums within
// 16 values are those of mma.sync (attention_orders_sm90a.cu, held to it by a test).
//
// A block is a warpgroup that copies and two that compute, 64 of the tile's 128 rows each. Copies go by cp.async into tiles
// swizzled for wgmma, STAGES steps of keys and values ahead; the totals over splits lie behind these. While a warpgroup's products with the values of one step are under
// way, it makes the weights of the next.
#include "attention_rows.cuh"
#include "attention_roles.cuh"
#include "wgmma.cuh"

using namespace polylink;

namespace {

constexpr uint32_t COPIERS = 128;
constexpr uint32_t COMPUTERS = 256;
constexpr uint32_t TILE = 128;

// Keeps the compiler from moving uses of registers across a wait for the products that write or read them.
template <int N>
__device__ __forceinline__ void pin(float (&values)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
        asm volatile("" : "+f"(values[i])::"memory");
    }
}

__device__ __forceinline__ void pin(uint32_t (&values)[4][4]) {
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        asm volatile("" : "+r"(values[i / 4][i % 4])::"memory");
    }
}

template <bool VALUE>
struct Constant {
    static constexpr bool value = VALUE;
};

template <int D>
struct Layout {
    static constexpr uint32_t STAGES = D == 64 ? 8 : 4;
    static constexpr uint32_t QUERY_BYTES = TILE * D * 2;
    static constexpr uint32_t HALF_BYTES = ATTENTION_STEP * D * 2;  // the keys, or the values, of a step
    static constexpr uint32_t CHUNKS = D / 8;
};

template <uint32_t STAGES>
struct Barriers {
    uint64_t full[STAGES], empty[STAGES];
    uint64_t query_full, query_empty;
};

template <int D>
__device__ __forceinline__ void copy_pieces(const AttentionParams& p, uint32_t shared,
                                            Barriers<Layout<D>::STAGES>& barriers) {
    using L = Layout<D>;
    constexpr uint32_t LAG = 2;  // steps whose copies are under way beside that which is told
    const uint32_t total = p.plan[1] * p.kv_heads, group = p.query_heads / p.kv_heads;
    uint32_t stage = 0, phase = 0, told = 0, pieces = 0;
    for (uint32_t round = 0; round * gridDim.x < total; ++round) {
        uint32_t work;
        if (!work_of(round, total, work)) {
            continue;
        }
        const uint32_t head = work % p.kv_heads;
        const uint4 low = __ldg(words_of(p, p.plan[2], work)), high = __ldg(words_of(p, p.plan[2], work) + 1);
        const AttentionSpan span = attention_span(p, low.y, low.z, high.x, high.z);
        if (span.steps == 0) {
            continue;
        }
        barrier_wait(&barriers.query_empty, (pieces & 1) ^ 1);
        ++pieces;
#pragma unroll 1
        for (uint32_t i = 0; i < TILE * L::CHUNKS / COPIERS; ++i) {
            const uint32_t index = threadIdx.x + i * COPIERS, row = index / L::CHUNKS, chunk = index % L::CHUNKS;
            const bool there = row < span.flats;
            const uint32_t flat = low.y + (there ? row : 0);
            const uint64_t at = (uint64_t)(low.x + flat / group) * p.query_heads + head * group + flat % group;
            copy_async(shared + swizzled(TILE, row, chunk), p.query + at * D + chunk * 8, there ? 16 : 0);
        }
        const KvShape shape = {p.layers, p.kv_heads, D};
        const uint32_t* table = p.block_tables + low.w;
        const uint32_t last = (span.key_end - 1) / KV_BLOCK_TOKENS;
        const uint64_t to_values = (uint64_t)p.kv_heads * KV_BLOCK_TOKENS * D;
        uint32_t blocks[2] = {__ldg(table + span.first_step * 2), __ldg(table + min(span.first_step * 2 + 1, last))};
        bool first = true;  // the queries are not told yet
        auto tell = [&]() {
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
            barrier_arrive(&barriers.full[told]);
            told = told + 1 == L::STAGES ? 0 : told + 1;
            if (first) {
                barrier_arrive(&barriers.query_full);
                first = false;
            }
        };
        for (uint32_t step = 0; step < span.steps; ++step) {
            barrier_wait(&barriers.empty[stage], phase ^ 1);
            const uint16_t* low_half = p.cache + kv_start(shape, blocks[0], p.layer, 0, head);
            const uint16_t* high_half = p.cache + kv_start(shape, blocks[1], p.layer, 0, head) - KV_BLOCK_TOKENS * D;
            const uint32_t key = (span.first_step + step) * ATTENTION_STEP;
            const uint32_t to = shared + L::QUERY_BYTES + stage * 2 * L::HALF_BYTES;
#pragma unroll 4
            for (uint32_t i = 0; i < ATTENTION_STEP * L::CHUNKS / COPIERS; ++i) {
                const uint32_t index = threadIdx.x + i * COPIERS, row = index / L::CHUNKS, chunk = index % L::CHUNKS;
                const uint16_t* own = (row < KV_BLOCK_TOKENS ? low_half : high_half) + index * 8;
                const uint32_t bytes = key + row - span.key_begin < span.key_end - span.key_begin ? 16 : 0;
                const uint32_t at = to + swizzled(ATTENTION_STEP, row, chunk);
                copy_async(at, own, bytes);
                copy_async(at + L::HALF_BYTES, own + to_values, bytes);
            }
            copies_commit();
            if (step + 1 < span.steps) {
                const uint32_t entry = (span.first_step + step + 1) * 2;
                blocks[0] = __ldg(table + entry);
                blocks[1] = __ldg(table + min(entry + 1, last));
            }
            if (++stage == L::STAGES) {
                stage = 0;
                phase ^= 1;
            }
            if (step >= LAG) {
                copies_wait<LAG>();
                tell();
            }
        }
        copies_wait<0>();
        for (uint32_t left = min(span.steps, LAG); left > 0; --left) {
            tell();
        }
    }
}

template <int D, bool CAP>
__device__ __forceinline__ void compute_pieces(const AttentionParams& p, uint32_t shared, float4* totals, AttentionItem& piece,
                                               Barriers<Layout<D>::STAGES>& barriers) {
    using L = Layout<D>;
    using Rows = AttentionRows<D, 8, 1, CAP, Keep::SharedTotals>;
    const uint32_t own = threadIdx.x - COPIERS;
    const uint32_t query = shared + own / 128 * 64 * 128;  // the warpgroup's rows in each panel
    Rows rows(p, piece, totals, own);
    float(&values)[D / 2] = *reinterpret_cast<float(*)[D / 2]>(&rows.values[0][0][0]);
    float s[ATTENTION_STEP / 2];
    uint32_t weights[ATTENTION_STEP / 16][4];
    const uint32_t total = p.plan[1] * p.kv_heads;
    uint32_t stage = 0, phase = 0, pieces = 0;
    for (uint32_t round = 0; round * gridDim.x < total; ++round) {
        uint32_t work;
        if (!work_of(round, total, work)) {
            continue;
        }
        Rows::meet();  // all are done with the piece before
        if (own < 2) {
            ((uint4*)&piece)[own] = __ldg(words_of(p, p.plan[2], work) + own);
        }
        Rows::meet();
        rows.open(work % p.kv_heads);
        // The same for all, which the compiler sees of a shuffle.
        const uint32_t steps = __shfl_sync(0xffffffffu, rows.steps, 0);
        const uint32_t first_step = __shfl_sync(0xffffffffu, rows.first_step, 0);
        if (steps == 0) {
            rows.end_piece();
            continue;
        }
        rows.begin_tile();
        barrier_wait(&barriers.query_full, pieces & 1);
        ++pieces;
        auto keys = [&]() { return shared + L::QUERY_BYTES + stage * 2 * L::HALF_BYTES; };
        auto scores = [&]() {
#pragma unroll
            for (int depth = 0; depth < D / 16; ++depth) {
                wgmma_bf16(s, along_rows(query + depth / 4 * TILE * 128 + depth % 4 * 32),
                           along_rows(keys() + depth / 4 * ATTENTION_STEP * 128 + depth % 4 * 32), depth == 0);
            }
            wgmma_commit();
        };
        auto products_done = [&](uint32_t step) {
            wgmma_wait<0>();
            pin(values);
            pin(weights);
            if (step > 0 && rows.lane == 0) {
                barrier_arrive(&barriers.empty[stage == 0 ? L::STAGES - 1 : stage - 1]);
            }
        };
        // A step begins with its scores complete and the products with the values of the step before under way. `first`: of its
        // split. Both are told when this is compiled, so that no wait for products is on one path alone.
        auto advance = [&](uint32_t step, auto first, auto more) {
            const uint32_t absolute = first_step + step;
            if constexpr (decltype(first)::value) {
                products_done(step);
                if (step > 0) {
                    rows.end_split(absolute / STEPS_PER_SPLIT - 1);
                }
            }
            cap_scores<CAP>(p, s);
            if (rows.hides(absolute * ATTENTION_STEP)) {
                rows.mask(s, absolute * ATTENTION_STEP);
            }
            float shrink[2];
            weigh<CAP>(p, s, rows.maximum, shrink);
            if constexpr (!decltype(first)::value) {
                products_done(step);
            }
            pack_weights(s, weights);
            rows.shrink_by(shrink);
            const uint32_t step_values = keys() + L::HALF_BYTES;
            stage = stage + 1 == L::STAGES ? 0 : stage + 1;
            phase ^= stage == 0;
            if constexpr (decltype(more)::value) {
                barrier_wait(&barriers.full[stage], phase);
            }
            pin(values);
            pin(weights);
            wgmma_fence();
            if constexpr (decltype(more)::value) {
                scores();
            }
#pragma unroll
            for (int sixteen = 0; sixteen < (int)ATTENTION_STEP / 16; ++sixteen) {
                wgmma_turned(values, weights[sixteen], across_rows(step_values + sixteen * 16 * 128, ATTENTION_STEP * 128));
            }
            wgmma_commit();
#pragma unroll
            for (int sixteen = 0; sixteen < (int)ATTENTION_STEP / 16; ++sixteen) {
                mma_bf16(rows.sums, weights[sixteen], BF16_ONES, BF16_ONES);
            }
            if constexpr (decltype(more)::value) {
                wgmma_wait<1>();
                pin(s);
            }
        };
        barrier_wait(&barriers.full[stage], phase);
        wgmma_fence();
        scores();
        wgmma_wait<0>();
        pin(s);
        const Constant<true> yes;
        const Constant<false> no;
        uint32_t step = 0;
        for (bool done = false; !done;) {
            const uint32_t end = min(steps, step + STEPS_PER_SPLIT - (first_step + step) % STEPS_PER_SPLIT);
            done = end == steps;
            if (step + 1 == steps) {
                advance(step, yes, no);
                break;
            }
            advance(step, yes, yes);
            for (++step; step + (done ? 1 : 0) < end; ++step) {
                advance(step, no, yes);
            }
            if (done) {
                advance(step, no, no);
            }
        }
        wgmma_wait<0>();
        pin(values);
        pin(weights);
        if (rows.lane == 0) {
            barrier_arrive(&barriers.empty[stage == 0 ? L::STAGES - 1 : stage - 1]);
            barrier_arrive(&barriers.query_empty);
        }
        rows.end_split((first_step + steps - 1) / STEPS_PER_SPLIT);
        rows.end_piece();
    }
}

template <int D, bool CAP>
__device__ __forceinline__ void attention(const AttentionParams& p) {
    using L = Layout<D>;
    extern __shared__ __align__(1024) uint8_t dynamic[];
    __shared__ Barriers<L::STAGES> barriers;
    __shared__ __align__(16) AttentionItem piece;
    const uint32_t shared = (shared_address(dynamic) + 1023) / 1024 * 1024;
    pdl_launch();
    if (threadIdx.x == 0) {
        for (uint32_t stage = 0; stage < L::STAGES; ++stage) {
            barrier_init(&barriers.full[stage], COPIERS);
            barrier_init(&barriers.empty[stage], COMPUTERS / 32);
        }
        barrier_init(&barriers.query_full, COPIERS);
        barrier_init(&barriers.query_empty, COMPUTERS / 32);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    pdl_wait();
    if (threadIdx.x < COPIERS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        copy_pieces<D>(p, shared, barriers);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        float4* totals = (float4*)(dynamic + (shared - shared_address(dynamic)) + L::QUERY_BYTES + L::STAGES * 2 * L::HALF_BYTES);
        compute_pieces<D, CAP>(p, shared, totals, piece, barriers);
    }
}

}  // namespace

// Mirrored by `WIDE_HOPPER` in kernels/src/cuda/attention/tiles.rs.
#define ATTENTION(NAME, D, CAP)                                             \
    extern "C" __global__ void __launch_bounds__(COPIERS + COMPUTERS, 1)    \
        attention_bf16_##NAME(const __grid_constant__ AttentionParams p) {  \
        attention<D, CAP>(p);                                               \
    }

ATTENTION(64_wide, 64, false)
ATTENTION(64_wide_cap, 64, true)
ATTENTION(128_wide, 128, false)
ATTENTION(128_wide_cap, 128, true)
