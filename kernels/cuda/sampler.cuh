// What the sampler's kernels share: a step's rows, keys that order tokens, noise that could win.
//
// Rule 6 of docs/numerics.md, as kernels/src/sampler.rs has it. All combining is either exact in any order (maxima of keys,
// sums of integers) or in the one order that the rules name (the 64 lanes of a logprob): so the bits do not depend on how
// many blocks share a row.
#pragma once

#include "common.cuh"

namespace polylink {

constexpr float GUMBEL_MAX = 16.65f;    // no noise is larger
constexpr float GUMBEL_MIN = -2.83f;    // none is smaller: −ln(−ln 2⁻²⁴) = −2.8115
constexpr float WEIGHT_ONE = 1099511627776.0f;  // 2⁴⁰
constexpr uint32_t NO_TOKEN = 0xffffffffu;
constexpr uint32_t NOT_FINITE = 0xfffffffeu;
constexpr uint32_t TOP_MAX = 20;        // logprobs of a row
constexpr uint32_t PARTS_MAX = 64;      // blocks that share a row
constexpr uint32_t RUN_QUADS = 32;      // quads of a run: 128 tokens, a quad per thread of a warp

// Flags of a row.
constexpr uint32_t ROW_GIVEN = 1;        // its token is known: nothing is drawn
constexpr uint32_t ROW_GREEDY = 2;       // temperature 0
constexpr uint32_t ROW_PENALTIES = 4;
constexpr uint32_t ROW_BY_RANK = 8;      // top-k
constexpr uint32_t ROW_BY_WEIGHT = 16;   // top-p
constexpr uint32_t ROW_BY_SHARE = 32;    // min-p
constexpr uint32_t ROW_LOGPROBS = 64;    // logprobs are wanted
constexpr uint32_t ROW_LAST = 128;       // the slot's last row of the step: its token is the slot's last sample
constexpr uint32_t ROW_ADJUSTED = 256;   // its scores lie in `scores`, made of its logits by sampler_adjust
constexpr uint32_t ROW_BIAS_REPEATS = 512;  // the bias is to be applied in order
constexpr uint32_t ROW_DRAWN_APART = 1024;  // sampler_draw draws it where sampler_cut has no list
constexpr uint32_t ROW_CUT = ROW_BY_RANK | ROW_BY_WEIGHT | ROW_BY_SHARE;

// Lists of rows, one per kernel: entry i of each lies in row i's `listed`.
enum SampleList : uint32_t { LIST_ADJUSTED = 0, LIST_SCANNED = 1, LIST_CUT = 2, LIST_SCORED = 3 };

// How many entries the lists have; at the start of what is uploaded for a step, the rows behind it.
struct SampleHeader {
    uint32_t rows;
    uint32_t listed[4];  // by SampleList
    uint32_t spare[3];
};

struct SampleRow {
    const uint32_t* bias;        // [bias_count] (token, f32 bits)
    const uint32_t* suppressed;  // [suppressed_count]
    const uint32_t* mask;        // [⌈vocabulary / 32⌉], or null: everything is allowed
    uint64_t noise_key;
    uint64_t share;              // ⌊top_p × 2³²⌋
    uint32_t logits_row;
    uint32_t scores_row;         // of `scores` and `counts`, if adjusted
    uint32_t slot;
    uint32_t position;           // of the token to be drawn
    uint32_t flags;
    uint32_t given;
    uint32_t top_count;
    uint32_t top_k;
    uint32_t bias_count;
    uint32_t suppressed_count;
    uint32_t history_length;     // prompt and completion
    uint32_t prompt_length;
    uint32_t append_at;          // where the token goes in its slot's history; 0xffffffff: nowhere, it is full
    float temperature;
    float min_p;
    float repetition;
    float presence;
    float frequency;
    uint32_t listed[4];          // of the lists, not of this row
};

struct SamplePartial {
    uint64_t best;  // largest `packed`; 0: no token may be drawn
    uint32_t bad;   // a logit is not finite
    uint32_t spare;
};

struct SampleState {
    uint64_t drawn;    // of a row with a cut-off: `packed`
    uint64_t cut;      // `packed` of the last token that may be drawn; 0: the draw was made
    uint32_t bad;      // of an adjusted row: a logit is not finite
    float max;         // of the raw logits
    float log_sum;
    uint32_t rank;     // of the given token
};

struct SampleLogprob {
    uint32_t token;
    float logprob;
};

struct SampleResult {
    SampleLogprob token;
    uint32_t rank;
    uint32_t top_count;
    SampleLogprob top[TOP_MAX];
};

// Of all the sampler's kernels.
struct SampleArgs {
    const SampleHeader* header;
    const SampleRow* rows;
    const float* logits;       // [wanted rows][logits_stride]
    float* scores;             // [adjusted rows of a pass][scores_stride]
    uint32_t* counts;          // [adjusted rows of a pass][scores_stride]; all 0 between kernels
    uint32_t* histories;       // [slots][positions]
    uint32_t* last_sample;     // [slots]
    SamplePartial* partials;   // [rows][PARTS_MAX]
    uint32_t* bounds;          // [rows] key of a sum that the row's best reaches; 0 between steps
    uint32_t* maxima;          // [rows][runs] of rows with a cut-off: `score_key` of each run's largest score
    uint64_t* bucket_weights;  // [rows][BUCKETS], 0 between steps, and
    uint32_t* bucket_counts;   // [rows][BUCKETS] likewise
    SampleState* states;       // [rows]
    SampleResult* results;     // [rows]
    uint32_t vocabulary;
    uint32_t logits_stride;
    uint32_t scores_stride;    // a multiple of 4
    uint32_t positions;
    uint32_t parts;            // blocks per row in sampler_scan
    uint32_t first;            // entries first .. last of the kernel's list, as far as there are any
    uint32_t last;
    uint32_t spare;
};

// ---- Buckets of scores, for the cut-offs.

constexpr uint32_t BUCKETS = 2048;
constexpr float PARTS_OF_ONE = 64.0f;   // buckets per unit of score
constexpr uint32_t WEIGHTLESS = 1792;   // what is 28 behind the largest score weighs nothing: ⌊exp(−28) × 2⁴⁰⌋ = 0

__device__ __forceinline__ uint32_t bucket_of(float score, float max) {
    // Rounding keeps the order of differences, and so does the cut of the fraction.
    return (uint32_t)fminf(__fmul_rn(__fsub_rn(max, score), PARTS_OF_ONE), (float)(BUCKETS - 1));
}

// Of a block, in shared memory. Sums of weights lie in two halves.
struct Buckets {
    uint32_t counts[BUCKETS];
    uint32_t low[BUCKETS], high[BUCKETS];
};

__device__ __forceinline__ void clear_buckets(Buckets& buckets) {
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < BUCKETS; i += blockDim.x) {
        buckets.counts[i] = buckets.low[i] = buckets.high[i] = 0;
    }
    __syncthreads();
}

// The entry of a list that a block works on; false: there is none.
__device__ __forceinline__ bool listed_row(const SampleArgs& args, uint32_t list, uint32_t block, uint32_t& index) {
    uint32_t entry = args.first + block;
    uint32_t end = args.header->listed[list] < args.last ? args.header->listed[list] : args.last;
    if (entry >= end) {
        return false;
    }
    index = args.rows[entry].listed[list];
    return true;
}

__device__ __forceinline__ float minus_infinity() { return from_bits(0xff800000u); }

// Larger for larger scores, equal for ±0; 0 for −∞ (and NaN): what may not be drawn.
__device__ __forceinline__ uint32_t score_key(float score) {
    if (!(score > minus_infinity())) {
        return 0;
    }
    uint32_t bits = score == 0.0f ? 0 : to_bits(score);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ float key_score(uint32_t key) {
    return from_bits(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

// Orders tokens: largest score first, ties by id. 0: no token.
__device__ __forceinline__ uint64_t packed(float score, uint32_t token) {
    uint32_t key = score_key(score);
    return key == 0 ? 0 : (uint64_t)key << 32 | (uint32_t)~token;
}

__device__ __forceinline__ uint32_t packed_token(uint64_t packed) { return ~(uint32_t)packed; }

__device__ __forceinline__ float packed_score(uint64_t packed) { return key_score((uint32_t)(packed >> 32)); }

// A weight in fixed point, as a conversion that saturates has it.
__device__ __forceinline__ uint64_t fixed_weight(float weight) {
    return weight > 0.0f ? (uint64_t)__fmul_rn(weight, WEIGHT_ONE) : 0;
}

// total × share ÷ 2³², of which the product has 96 bits.
__device__ __forceinline__ uint64_t share_of(uint64_t total, uint64_t share) {
    return __umul64hi(total, share) << 32 | (total * share) >> 32;
}

__device__ __forceinline__ void add_to_bucket(Buckets& buckets, uint32_t bucket, bool weigh, float score, float max) {
    atomicAdd(&buckets.counts[bucket], 1u);
    if (!weigh) {
        return;
    }
    uint64_t weight = fixed_weight(exact_exp(__fsub_rn(score, max)));
    // The lower half's carries are found by what each addition finds.
    uint32_t low = (uint32_t)weight, high = (uint32_t)(weight >> 32);
    high += atomicAdd(&buckets.low[bucket], low) + low < low;
    if (high > 0) {
        atomicAdd(&buckets.high[bucket], high);
    }
}

__device__ __forceinline__ uint64_t bucket_weight(const Buckets& buckets, uint32_t bucket) {
    return (uint64_t)buckets.high[bucket] << 32 | buckets.low[bucket];
}

__device__ __forceinline__ uint32_t runs_of(uint32_t vocabulary) {
    return (vocabulary + 4 * RUN_QUADS - 1) / (4 * RUN_QUADS);
}

// The quads of a row that a block takes: whole runs.
__device__ __forceinline__ void part_of(const SampleArgs& args, uint32_t part, uint32_t& begin, uint32_t& end) {
    uint32_t quads = (args.vocabulary + 3) / 4, runs = (runs_of(args.vocabulary) + args.parts - 1) / args.parts;
    begin = part * runs * RUN_QUADS;
    end = begin + runs * RUN_QUADS < quads ? begin + runs * RUN_QUADS : quads;
}

// Where a row's scores, or its logits if they are the same, lie.
struct RowSource {
    const float* values;
    const uint32_t* mask;
    uint32_t vocabulary;
    bool wide;        // four at once: rows are 16-byte aligned and padded to whole quads
    bool divides;
    float temperature;
};

__device__ __forceinline__ RowSource row_source(const SampleArgs& args, const SampleRow& row) {
    RowSource source;
    bool adjusted = row.flags & ROW_ADJUSTED;
    source.values = adjusted ? args.scores + (uint64_t)row.scores_row * args.scores_stride
                             : args.logits + (uint64_t)row.logits_row * args.logits_stride;
    source.mask = row.mask;
    source.vocabulary = args.vocabulary;
    source.wide = adjusted || args.logits_stride % 4 == 0;
    source.divides = !(row.flags & ROW_GREEDY) && row.temperature != 1.0f;
    source.temperature = row.temperature;
    return source;
}

struct Quad {
    float v[4];
};

// Tokens 4 × quad … + 3; beyond the vocabulary −∞.
__device__ __forceinline__ Quad load_quad(const float* values, uint32_t quad, uint32_t vocabulary, bool wide) {
    Quad result;
    uint32_t token = 4 * quad;
    if (wide) {
        float4 four = reinterpret_cast<const float4*>(values)[quad];
        result = {{four.x, four.y, four.z, four.w}};
    } else {
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            result.v[i] = token + i < vocabulary ? values[token + i] : minus_infinity();
        }
    }
    if (token + 4 > vocabulary) {
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            result.v[i] = token + i < vocabulary ? result.v[i] : minus_infinity();
        }
    }
    return result;
}

// Adds 0 × each: NaN once one is not finite. Within the vocabulary only.
__device__ __forceinline__ float quad_finite(const Quad& quad, uint32_t index, uint32_t vocabulary, float sum) {
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
        sum = 4 * index + 4 <= vocabulary || 4 * index + i < vocabulary ? __fmaf_rn(quad.v[i], 0.0f, sum) : sum;
    }
    return sum;
}

__device__ __forceinline__ void mask_quad(const RowSource& source, Quad& quad, uint32_t index) {
    if (source.mask != nullptr) {
        uint32_t bits = source.mask[index / 8] >> (index % 8 * 4);
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            quad.v[i] = bits >> i & 1 ? quad.v[i] : minus_infinity();
        }
    }
}

__device__ __forceinline__ void divide_quad(const RowSource& source, Quad& quad) {
    if (source.divides) {
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            quad.v[i] = __fdiv_rn(quad.v[i], source.temperature);
        }
    }
}

__device__ __forceinline__ Quad score_quad(const RowSource& source, uint32_t index) {
    Quad quad = load_quad(source.values, index, source.vocabulary, source.wide);
    mask_quad(source, quad, index);
    divide_quad(source, quad);
    return quad;
}

__device__ __forceinline__ float quad_max(const Quad& quad) {
    return fmaxf(fmaxf(quad.v[0], quad.v[1]), fmaxf(quad.v[2], quad.v[3]));
}

// Random bits below this (of 23) make noise that does not lift a score of `max` to `bound`: noise of u reaches x only if
// u ≥ exp(−exp(−x)), so only if 1 − u ≤ exp(−x). The slack is for what rounding does to the sum, to the noise and to this.
__device__ __forceinline__ uint32_t least_bits(float bound, float max) {
    float slack = 1e-3f + (fabsf(bound) + fabsf(max)) * 1.1920929e-7f;
    float missing = __expf((max - bound) + slack) * 8388608.0f + 2.0f;
    return 8388608u - (uint32_t)fminf(missing, 8388608.0f);
}

// The best `score + noise` so far.
struct Draw {
    uint64_t key;
    uint32_t position;
    float bound;    // some token's sum is at least this: what stays below it cannot win
    uint64_t best;  // `packed` of sums
};

// Tries four tokens; those at −∞ are no candidates.
__device__ __forceinline__ void draw_quad(Draw& draw, const Quad& quad, uint32_t index) {
    float max = quad_max(quad);
    if (!(max > minus_infinity()) || __fadd_rn(max, GUMBEL_MAX) < draw.bound) {
        return;
    }
    Words4 words = philox_4x32_10(draw.position, index, 0, 0, draw.key);
    uint32_t least = least_bits(draw.bound, max);
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
        if (words.word[i] >> 9 >= least && quad.v[i] > minus_infinity()) {
            float sum = __fadd_rn(quad.v[i], gumbel_from_bits(words.word[i]));
            uint64_t one = packed(sum, 4 * index + i);
            draw.best = one > draw.best ? one : draw.best;
            draw.bound = fmaxf(draw.bound, sum);
        }
    }
}

// ---- A block together. `memory` holds 33 values; all threads of the block, a multiple of 32, take part.

__device__ __forceinline__ uint64_t warp_max(uint64_t value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        uint64_t other = __shfl_xor_sync(0xffffffffu, value, distance);
        value = other > value ? other : value;
    }
    return value;
}

__device__ __forceinline__ uint64_t block_max(uint64_t value, uint64_t* memory) {
    value = warp_max(value);
    __syncthreads();  // what was in `memory` has been read
    if (threadIdx.x % 32 == 0) {
        memory[threadIdx.x / 32] = value;
    }
    __syncthreads();
    return warp_max(threadIdx.x % 32 < blockDim.x / 32 ? memory[threadIdx.x % 32] : 0);
}

// The sum of the values of all lanes up to this one.
__device__ __forceinline__ uint64_t warp_through(uint64_t sum) {
    uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (uint32_t distance = 1; distance < 32; distance *= 2) {
        uint64_t other = __shfl_up_sync(0xffffffffu, sum, distance);
        sum += lane >= distance ? other : 0;
    }
    return sum;
}

// The sum of the values of all threads before this one, and of all.
__device__ __forceinline__ uint64_t block_before(uint64_t value, uint64_t* memory, uint64_t& total) {
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    uint64_t sum = warp_through(value);
    __syncthreads();
    if (lane == 31) {
        memory[warp] = sum;
    }
    __syncthreads();
    uint64_t through = warp_through(lane < warps ? memory[lane] : 0);
    uint64_t before = __shfl_sync(0xffffffffu, through, warp == 0 ? 0 : warp - 1);
    total = __shfl_sync(0xffffffffu, through, warps - 1);
    return (warp == 0 ? 0 : before) + (sum - value);
}

// Sorts `count` keys, a power of two, the largest first.
__device__ __forceinline__ void block_sort(uint64_t* keys, uint32_t count) {
    for (uint32_t run = 2; run <= count; run *= 2) {
        for (uint32_t step = run / 2; step > 0; step /= 2) {
            __syncthreads();
            for (uint32_t i = threadIdx.x; i < count / 2; i += blockDim.x) {
                uint32_t low = 2 * i - (i & (step - 1)), high = low + step;
                bool descends = (low & run) == 0;
                uint64_t a = keys[low], b = keys[high];
                if (descends ? a < b : a > b) {
                    keys[low] = b;
                    keys[high] = a;
                }
            }
        }
    }
    __syncthreads();
}

// ---- Runs of a row with a cut-off, whose largest scores are known.

struct Row {
    RowSource source;
    const uint32_t* maxima;
    uint32_t quads, runs;
    float max;  // largest score
    uint64_t noise_key;
    uint32_t position;
};

__device__ __forceinline__ Row cut_row(const SampleArgs& args, const SampleRow& params, uint32_t index, float max) {
    uint32_t runs = runs_of(args.vocabulary);
    return {row_source(args, params), args.maxima + (uint64_t)index * runs, (args.vocabulary + 3) / 4, runs, max,
            params.noise_key,         params.position};
}

// Calls `body(quad of scores, index)` for the runs first .. last whose largest score is wanted: a warp per run.
template <class Wanted, class Body>
__device__ __forceinline__ void for_quads(const Row& row, uint32_t first, uint32_t last, Wanted wanted, Body body) {
    constexpr uint32_t TOGETHER = 2;
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
    for (uint32_t base = first + warp; base < last; base += 32 * warps) {
        uint32_t own = base + lane * warps, key = own < last ? row.maxima[own] : 0;
        uint32_t left = __ballot_sync(0xffffffffu, key != 0 && wanted(key_score(key)));
        while (left != 0) {
            uint32_t quads[TOGETHER];
            Quad values[TOGETHER];
#pragma unroll
            for (uint32_t j = 0; j < TOGETHER; ++j) {
                quads[j] = row.quads;
                if (left != 0) {
                    quads[j] = (base + (__ffs(left) - 1) * warps) * RUN_QUADS + lane;
                    left &= left - 1;
                }
            }
#pragma unroll
            for (uint32_t j = 0; j < TOGETHER; ++j) {
                if (quads[j] < row.quads) {
                    values[j] = score_quad(row.source, quads[j]);
                }
            }
#pragma unroll
            for (uint32_t j = 0; j < TOGETHER; ++j) {
                if (quads[j] < row.quads) {
                    body(values[j], quads[j]);
                }
            }
        }
    }
}

// The draw among the tokens of the runs first .. last that are `packed` at least `cut` and that the other cut-offs keep.
__device__ __forceinline__ void draw_runs(const Row& row, const SampleRow& params, uint64_t cut, uint32_t first, uint32_t last,
                                          Draw& draw) {
    bool by_weight = params.flags & ROW_BY_WEIGHT, by_share = params.flags & ROW_BY_SHARE;
    float min_p = params.min_p, max = row.max;
    uint32_t least = (uint32_t)(cut >> 32);
    auto wanted = [&](float largest) {
        // With room for what rounding does to exp.
        bool shares = !by_share || exact_exp(__fsub_rn(largest, max)) * 1.0001f >= min_p;
        return shares && score_key(largest) >= least && __fadd_rn(largest, GUMBEL_MAX) >= draw.bound;
    };
    for_quads(row, first, last, wanted, [&](Quad values, uint32_t quad) {
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            float score = values.v[i];
            bool keep = packed(score, 4 * quad + i) >= cut;
            if (keep && (by_weight || by_share)) {
                float weight = exact_exp(__fsub_rn(score, max));
                keep = !(by_weight && fixed_weight(weight) == 0) && !(by_share && !(weight >= min_p));
            }
            values.v[i] = keep ? score : minus_infinity();
        }
        draw_quad(draw, values, quad);
    });
}

}  // namespace polylink
