// Narrow tiles of attention on sm_90: the same sums as attention_bf16.cuh says, a whole split at a time.
//
// A block has four warps that copy and eight that compute. Copies run up to SLOTS halves (the keys, or the values, of a split of
// 256 positions) ahead, over the borders of pieces. Of the computing warps each takes 32 keys for the scores; they tell each
// other their rows' maxima, from which each knows the running maximum of every step of 64 keys, and leave their weights in shared
// memory; then each takes 16 dimensions of the values. A split so takes a fraction of the time that reading it takes.
#include "attention_roles.cuh"
#include "attention_rows.cuh"

using namespace polylink;

namespace {

constexpr uint32_t COPIERS = 128;
constexpr uint32_t WARPS = 8;
constexpr uint32_t COMPUTERS = 32 * WARPS;
constexpr uint32_t TILE = 16;
constexpr uint32_t OWN_KEYS = ATTENTION_SPLIT / WARPS;

// What a slot holds.
struct Half {
    AttentionItem item;
    uint32_t head;
    uint32_t split;
    uint32_t first;  // of the piece's splits: 1; none is left: 2
    uint32_t last;
};

template <int D, uint32_t SLOTS>
struct Split {
    static constexpr uint32_t CHUNKS = D / 8;
    static constexpr uint32_t PITCH = 2 * D + 16;
    // Keys or values, and behind a piece's first keys its queries.
    static constexpr uint32_t SLOT_BYTES = (ATTENTION_SPLIT + TILE) * PITCH;
    static constexpr uint32_t WEIGHT_PITCH = 2 * ATTENTION_SPLIT + 16;
    static constexpr uint32_t WEIGHTS = SLOTS * SLOT_BYTES;              // [16 rows][256 keys] bf16
    static constexpr uint32_t MAXIMA = WEIGHTS + TILE * WEIGHT_PITCH;    // [8 warps][16 rows] f32

    struct Shared {
        uint64_t full[SLOTS], empty[SLOTS];
        Half half[SLOTS];
    };

    // ---- The warps that copy.

    // Starts the copies of a half: rows of 64-key steps that have a visible key; of these, what no row of the tile sees is zeros.
    __device__ __forceinline__ static void copy_half(const uint16_t* from, const uint32_t (&blocks)[8],
                                                     uint64_t block_values, uint32_t key, const AttentionSpan& span, uint32_t to) {
        constexpr uint32_t BLOCK_CHUNKS = KV_BLOCK_TOKENS * CHUNKS;
#pragma unroll
        for (uint32_t block = 0; block < 8; ++block) {
            const uint32_t step = (key + block * KV_BLOCK_TOKENS) / ATTENTION_STEP;
            if (step >= span.first_step && step < span.first_step + span.steps) {
                const uint16_t* own = from + blocks[block] * block_values;
#pragma unroll
                for (uint32_t i = 0; i < (BLOCK_CHUNKS + COPIERS - 1) / COPIERS; ++i) {
                    const uint32_t index = threadIdx.x + i * COPIERS, row = index / CHUNKS, chunk = index % CHUNKS;
                    if (BLOCK_CHUNKS % COPIERS == 0 || index < BLOCK_CHUNKS) {
                        const uint32_t at = key + block * KV_BLOCK_TOKENS + row - span.key_begin;
                        copy_async(to + (block * KV_BLOCK_TOKENS + row) * PITCH + chunk * 16, own + index * 8,
                                   at < span.key_end - span.key_begin ? 16 : 0);
                    }
                }
            }
        }
    }

    __device__ __forceinline__ static void copy(const AttentionParams& p, uint32_t shared, Shared& state) {
        const uint32_t total = p.plan[0] * p.kv_heads, group = p.query_heads / p.kv_heads;
        const KvShape shape = {p.layers, p.kv_heads, D};
        const uint64_t block_values = kv_start(shape, 1, 0, 0, 0);
        const uint64_t to_values = (uint64_t)p.kv_heads * KV_BLOCK_TOKENS * D;
        uint32_t slot = 0, phase = 0;
        bool waited = false;
        auto next = [&]() {
            slot = slot + 1 == SLOTS ? 0 : slot + 1;
            phase ^= slot == 0;
        };
        for (uint32_t round = 0; round * gridDim.x < total; ++round) {
            uint32_t work;
            if (!work_of(round, total, work)) {
                continue;
            }
            const uint4 low = __ldg(words_of(p, 0, work)), high = __ldg(words_of(p, 0, work) + 1);
            const AttentionItem item = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
            const uint32_t head = work % p.kv_heads;
            const AttentionSpan span = attention_span(p, item.first_flat, item.first_position, item.splits, item.counts);
            const uint32_t* table = p.block_tables + item.table_start;
            const uint32_t last_entry = (span.key_end - 1) / KV_BLOCK_TOKENS;
            const uint16_t* from = p.cache + kv_start(shape, 0, p.layer, 0, head);
            // A piece without a visible key still arrives: one empty half stands for it.
            const uint32_t begin = span.first_step / STEPS_PER_SPLIT;
            const uint32_t end = span.steps == 0 ? begin + 1 : (span.first_step + span.steps - 1) / STEPS_PER_SPLIT + 1;
            for (uint32_t split = begin; split < end; ++split) {
                uint32_t blocks[8];
#pragma unroll
                for (uint32_t block = 0; block < 8; ++block) {
                    blocks[block] = span.steps == 0 ? 0 : __ldg(table + min(split * 8 + block, last_entry));
                }
                const uint32_t key = split * ATTENTION_SPLIT;
                for (uint32_t part = 0; part < (span.steps == 0 ? 1 : 2); ++part) {
                    barrier_wait(&state.empty[slot], phase ^ 1);
                    const uint32_t to = shared + slot * SLOT_BYTES;
                    // Keys of earlier steps do not wait for this step's append.
                    const bool is_old = min(key + ATTENTION_SPLIT, span.key_end) <= item.first_position;
                    if (!waited && !is_old) {
                        pdl_wait();
                        waited = true;
                    }
                    copy_half(from + part * to_values, blocks, block_values, key, span, to);
                    if (part == 0 && split == begin && span.steps > 0) {
                        if (!waited) {
                            pdl_wait();
                            waited = true;
                        }
                        for (uint32_t index = threadIdx.x; index < TILE * CHUNKS; index += COPIERS) {
                            const uint32_t row = index / CHUNKS, chunk = index % CHUNKS;
                            const bool there = row < span.flats;
                            const uint32_t flat = item.first_flat + (there ? row : 0);
                            const uint64_t at =
                                (uint64_t)(item.first_row + flat / group) * p.query_heads + head * group + flat % group;
                            copy_async(to + (ATTENTION_SPLIT + row) * PITCH + chunk * 16, p.query + at * D + chunk * 8,
                                       there ? 16 : 0);
                        }
                    }
                    if (threadIdx.x == 0) {
                        state.half[slot] = {item, head, split, split == begin ? 1u : 0u, split + 1 == end ? 1u : 0u};
                        barrier_arrive(&state.full[slot]);
                    }
                    barrier_arrive_after_copies(&state.full[slot]);
                    next();
                }
            }
        }
        barrier_wait(&state.empty[slot], phase ^ 1);
        if (threadIdx.x == 0) {
            state.half[slot].first = 2;
            barrier_arrive(&state.full[slot]);
        }
        barrier_arrive_after_copies(&state.full[slot]);
        if (!waited) {
            pdl_wait();
        }
    }

    // ---- The warps that compute.

    template <bool CAP>
    __device__ __forceinline__ static void compute(const AttentionParams& p, uint32_t shared, float* maxima, Shared& state) {
        using Rows = AttentionRows<D, 1, WARPS, CAP, Keep::Piece>;
        const uint32_t own = threadIdx.x - COPIERS;
        Rows rows(p, state.half[0].item, nullptr, own);
        const uint32_t lane = rows.lane, warp = rows.dim_warp, step = warp / 2;
        uint32_t slot = 0, phase = 0;
        uint32_t query[D / 16][4];
        auto release = [&]() {
            __syncwarp();
            if (lane == 0) {
                barrier_arrive(&state.empty[slot]);
            }
            slot = slot + 1 == SLOTS ? 0 : slot + 1;
            phase ^= slot == 0;
        };
        while (true) {
            barrier_wait(&state.full[slot], phase);
            const Half& half = state.half[slot];
            const uint32_t first = half.first, last = half.last, split = half.split;
            if (first == 2) {
                break;
            }
            const uint32_t keys = shared + slot * SLOT_BYTES;
            if (first) {
                rows.item = half.item;
                rows.open(half.head);
                rows.begin_tile();
                if (rows.steps > 0) {
#pragma unroll
                    for (int depth = 0; depth < D / 16; ++depth) {
                        load_matrices(query[depth],
                                      keys + (ATTENTION_SPLIT + lane % 16) * PITCH + lane / 16 * 16 + depth * 32);
                    }
                }
            }
            if (rows.steps == 0) {
                release();
                rows.end_piece();
                continue;
            }
            // Which of the split's steps were copied.
            const uint32_t from = split * STEPS_PER_SPLIT;
            auto there = [&](uint32_t step) {
                return from + step >= rows.first_step && from + step < rows.first_step + rows.steps;
            };
            float s[OWN_KEYS / 2];
            if (there(step)) {
#pragma unroll
                for (int i = 0; i < (int)OWN_KEYS / 2; ++i) {
                    s[i] = 0.0f;
                }
                const uint32_t address = keys + (warp * OWN_KEYS + lane % 8 + lane / 16 * 8) * PITCH + lane / 8 % 2 * 16;
#pragma unroll
                for (int depth = 0; depth < D / 16; ++depth) {
#pragma unroll
                    for (int sixteen = 0; sixteen < (int)OWN_KEYS / 16; ++sixteen) {
                        uint32_t b[4];
                        load_matrices(b, address + sixteen * 16 * PITCH + depth * 32);
                        mma_bf16(four_of(s, 8 * sixteen), query[depth], b[0], b[1]);
                        mma_bf16(four_of(s, 8 * sixteen + 4), query[depth], b[2], b[3]);
                    }
                }
                cap_scores<CAP>(p, s);
                if (rows.hides((from + step) * ATTENTION_STEP)) {
                    rows.mask(s, split * ATTENTION_SPLIT + warp * OWN_KEYS);
                }
            } else {
#pragma unroll
                for (int i = 0; i < (int)OWN_KEYS / 2; ++i) {
                    s[i] = minus_infinity();
                }
            }
            release();
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                const float highest = highest_of(s, row);
                if (lane % 4 == 0) {
                    maxima[warp * TILE + lane / 4 + 8 * row] = highest;
                }
            }
            Rows::meet();
            // The running maximum of each step, and what the sums before it are multiplied by.
            float base[2], shrink[STEPS_PER_SPLIT][2];
#pragma unroll
            for (int row = 0; row < 2; ++row) {
                float running = minus_infinity();
#pragma unroll
                for (int i = 0; i < (int)STEPS_PER_SPLIT; ++i) {
                    const float* at = maxima + 2 * i * TILE + lane / 4 + 8 * row;
                    const float highest = fmaxf(at[0], at[TILE]);
                    float own_base;
                    move_maximum<CAP>(p, highest, running, own_base, shrink[i][row]);
                    if (i == (int)step) {
                        base[row] = own_base;
                    }
                }
                rows.maximum[row] = running;
            }
            weights_of<CAP>(p, s, base);
#pragma unroll
            for (int i = 0; i < (int)OWN_KEYS / 4; ++i) {
                const uint32_t at = shared + WEIGHTS + (lane / 4 + i % 2 * 8) * WEIGHT_PITCH +
                                    (warp * OWN_KEYS + i / 2 * 8 + lane % 4 * 2) * 2;
                asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(pack_bf16(s[2 * i], s[2 * i + 1])) : "memory");
            }
            Rows::meet();
            barrier_wait(&state.full[slot], phase);
            const uint32_t values = shared + slot * SLOT_BYTES + lane % 16 * PITCH + lane / 16 * 16;
            const uint32_t weights = shared + WEIGHTS + lane % 16 * WEIGHT_PITCH + lane / 16 * 16;
#pragma unroll
            for (int i = 0; i < (int)STEPS_PER_SPLIT; ++i) {
                if (there(i)) {
                    rows.shrink_by(shrink[i]);
#pragma unroll
                    for (int sixteen = 0; sixteen < (int)ATTENTION_STEP / 16; ++sixteen) {
                        const int chunk = i * ATTENTION_STEP / 16 + sixteen;
                        uint32_t a[4];
                        load_matrices(a, weights + chunk * 32);
                        mma_bf16(rows.sums, a, BF16_ONES, BF16_ONES);
#pragma unroll
                        for (int pair = 0; pair < Rows::PAIRS; ++pair) {
                            const uint32_t dims = warp + pair * WARPS;
                            if (D / 16 % WARPS == 0 || dims < D / 16) {
                                uint32_t b[4];
                                load_matrices_turned(b, values + chunk * 16 * PITCH + dims * 32);
                                mma_bf16(rows.values[pair][0], a, b[0], b[1]);
                                mma_bf16(rows.values[pair][1], a, b[2], b[3]);
                            }
                        }
                    }
                }
            }
            release();
            rows.end_split(split);
            if (last) {
                rows.end_piece();
            }
        }
    }

    template <bool CAP>
    __device__ __forceinline__ static void run(const AttentionParams& p) {
        extern __shared__ __align__(128) uint8_t dynamic[];
        __shared__ Shared state;
        pdl_launch();
        if (threadIdx.x == 0) {
            for (uint32_t slot = 0; slot < SLOTS; ++slot) {
                barrier_init(&state.full[slot], COPIERS + 1);
                barrier_init(&state.empty[slot], WARPS);
            }
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        }
        __syncthreads();
        const uint32_t shared = shared_address(dynamic);
        if (threadIdx.x < COPIERS) {
            copy(p, shared, state);
        } else {
            pdl_wait();
            compute<CAP>(p, shared, (float*)(dynamic + MAXIMA), state);
        }
    }
};

}  // namespace

// Mirrored by `SPLIT_HOPPER` in kernels/src/cuda/attention/tiles.rs.
#define ATTENTION(NAME, D, SLOTS, CAP)                                        \
    extern "C" __global__ void __launch_bounds__(COPIERS + COMPUTERS, 1)      \
        attention_bf16_##NAME(const __grid_constant__ AttentionParams p) {    \
        Split<D, SLOTS>::run<CAP>(p);                                         \
    }

ATTENTION(64_narrow, 64, 5, false)
ATTENTION(64_narrow_cap, 64, 5, true)
ATTENTION(80_narrow, 80, 4, false)
ATTENTION(80_narrow_cap, 80, 4, true)
ATTENTION(96_narrow, 96, 3, false)
ATTENTION(96_narrow_cap, 96, 3, true)
ATTENTION(128_narrow, 128, 3, false)
ATTENTION(128_narrow_cap, 128, 3, true)
