// Draws of the rows with a cut-off: top-k, top-p, min-p.
//
// Top-k and top-p keep the first tokens by score, ties by id: a cut is the last of them, in the order of `packed`. Tokens
// fall into buckets by how far they lie behind the largest score, all of a bucket before all of the next; and sampler_scan
// has left each run's largest score, so that runs without a token of interest are skipped. Of top-k, the k-th largest of
// those bounds the k-th largest score; of top-p, sampler_weigh has weighed the buckets. Nearly always few tokens lie in the
// buckets up to that of the cut: they are listed and sorted, and what follows is done on the list. Else (flat logits, many
// ties, a large k) the bucket is cut further by the bits of the scores' keys, ties by id, and the draw is a pass over all.

#include "sampler.cuh"

namespace polylink {

constexpr uint32_t LISTED_MAX = 2048;
constexpr uint32_t THREADS = 512;
constexpr uint32_t EACH = BUCKETS / THREADS;  // buckets of a thread, and entries of the list
static_assert(LISTED_MAX == BUCKETS, "as many entries as buckets");

struct CutShared {
    Buckets buckets;
    uint64_t list[LISTED_MAX];
    uint64_t memory[33];
    uint64_t found_weight;  // of the buckets before the found one
    uint32_t found, found_count, found_through;
    uint32_t listed;
};

// The sums of exp(score − max) by bucket, of the rows with top-p and no top-k: several blocks per row.
extern "C" __global__ void __launch_bounds__(256) sampler_weigh(const __grid_constant__ SampleArgs args) {
    __shared__ Buckets buckets;
    __shared__ uint64_t memory[33];
    pdl_launch();
    pdl_wait();
    uint32_t index;
    if (!listed_row(args, LIST_CUT, blockIdx.y, index)) {
        return;
    }
    const SampleRow& row = args.rows[index];
    if ((row.flags & (ROW_BY_RANK | ROW_BY_WEIGHT)) != ROW_BY_WEIGHT) {
        return;
    }
    uint64_t best = threadIdx.x < args.parts ? args.partials[(uint64_t)index * PARTS_MAX + threadIdx.x].best : 0;
    float max = packed_score(block_max(best, memory));
    clear_buckets(buckets);
    const RowSource source = row_source(args, row);
    uint32_t begin, end;
    part_of(args, blockIdx.x, begin, end);
#pragma unroll 4
    for (uint32_t quad = begin + threadIdx.x; quad < end; quad += blockDim.x) {
        Quad values = score_quad(source, quad);
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            float score = values.v[i];
            uint32_t bucket = bucket_of(score, max);
            if (score > minus_infinity() && bucket <= WEIGHTLESS) {
                add_to_bucket(buckets, bucket, true, score, max);
            }
        }
    }
    __syncthreads();
    for (uint32_t bucket = threadIdx.x; bucket <= WEIGHTLESS; bucket += blockDim.x) {
        if (buckets.counts[bucket] > 0) {
            uint64_t place = (uint64_t)index * BUCKETS + bucket;
            atomicAdd(&args.bucket_counts[place], buckets.counts[bucket]);
            atomicAdd(reinterpret_cast<unsigned long long*>(&args.bucket_weights[place]),
                      (unsigned long long)bucket_weight(buckets, bucket));
        }
    }
}

// Calls `body(score, token)` for the tokens of those runs that may be drawn.
template <class Wanted, class Body>
__device__ __forceinline__ void for_scores(const Row& row, Wanted wanted, Body body) {
    for_quads(row, 0, row.runs, wanted, [&](const Quad& values, uint32_t quad) {
#pragma unroll
        for (uint32_t i = 0; i < 4; ++i) {
            if (values.v[i] > minus_infinity()) {
                body(values.v[i], 4 * quad + i);
            }
        }
    });
}

// What is sought: the first bucket with which the count reaches `count`, or the sum of weights `weight` and at least one
// token is there.
struct Goal {
    bool by_weight;
    uint32_t count;
    uint64_t weight;
};

// The sum of all buckets' weights.
__device__ __forceinline__ uint64_t all_weights(CutShared& shared) {
    uint64_t own = 0, total;
    __syncthreads();
#pragma unroll
    for (uint32_t i = 0; i < EACH; ++i) {
        own += bucket_weight(shared.buckets, EACH * threadIdx.x + i);
    }
    block_before(own, shared.memory, total);
    return total;
}

// Finds the goal's bucket, if so many tokens or so much weight lie before the first bucket: shared.found (BUCKETS: the goal
// is not reached), count and weight before it, tokens through it.
__device__ __forceinline__ void find_bucket(CutShared& shared, const Goal& goal, uint32_t count, uint64_t weight) {
    __syncthreads();
    if (threadIdx.x == 0) {
        shared.found = BUCKETS;
    }
    uint32_t counts = 0;
    uint64_t weights = 0, total;
#pragma unroll
    for (uint32_t i = 0; i < EACH; ++i) {
        counts += shared.buckets.counts[EACH * threadIdx.x + i];
        weights += goal.by_weight ? bucket_weight(shared.buckets, EACH * threadIdx.x + i) : 0;
    }
    uint32_t count_before = count + (uint32_t)block_before(counts, shared.memory, total);
    uint64_t weight_before = weight + (goal.by_weight ? block_before(weights, shared.memory, total) : 0);
#pragma unroll
    for (uint32_t i = 0; i < EACH; ++i) {
        uint32_t bucket = EACH * threadIdx.x + i, through = count_before + shared.buckets.counts[bucket];
        uint64_t weight_through = weight_before + (goal.by_weight ? bucket_weight(shared.buckets, bucket) : 0);
        bool reached = goal.by_weight ? weight_through >= goal.weight && through > count : through >= goal.count;
        bool before = goal.by_weight ? weight_before >= goal.weight && count_before > count : count_before >= goal.count;
        if (reached && !before) {
            shared.found = bucket;
            shared.found_count = count_before;
            shared.found_through = through;
            shared.found_weight = weight_before;
        }
        count_before = through;
        weight_before = weight_through;
    }
    __syncthreads();
}

// The last token that the goal lets in, exactly: it lies in bucket `bucket`, before which are `shared.found_count` tokens and
// `shared.found_weight`. Only tokens that are `packed` at least `outer` count.
__device__ __noinline__ uint64_t refine(CutShared& shared, const Row& row, const Goal& goal, uint64_t outer) {
    uint32_t bucket = shared.found, prefix = 0, above = 32;
#pragma unroll 1
    for (uint32_t level = 0; level < 3; ++level) {
        uint32_t bits = level < 2 ? 11 : 10, shift = above - bits;
        uint32_t count = shared.found_count;
        uint64_t weight = shared.found_weight;
        clear_buckets(shared.buckets);
        for_scores(row, [&](float largest) { return bucket_of(largest, row.max) <= bucket; },
                   [&](float score, uint32_t token) {
            uint32_t key = score_key(score);
            bool within = level == 0 || key >> above == prefix;
            if (within && bucket_of(score, row.max) == bucket && packed(score, token) >= outer) {
                uint32_t digit = key >> shift & ((1u << bits) - 1);
                add_to_bucket(shared.buckets, BUCKETS - 1 - digit, goal.by_weight, score, row.max);
            }
        });
        find_bucket(shared, goal, count, weight);
        prefix = prefix << bits | (BUCKETS - 1 - shared.found);
        above = shift;
    }
    // All that is left ties.
    uint32_t wanted = 1;
    if (goal.by_weight) {
        uint64_t each = fixed_weight(exact_exp(__fsub_rn(key_score(prefix), row.max)));
        uint64_t missing = goal.weight > shared.found_weight ? goal.weight - shared.found_weight : 0;
        if (each > 0 && missing > 0) {
            wanted = (uint32_t)((missing + each - 1) / each);
        }
    } else {
        wanted = goal.count - shared.found_count;
    }
    // The `wanted`-th of them by id: threads have neighbouring tokens each.
    uint32_t own = (row.quads + THREADS - 1) / THREADS, begin = threadIdx.x * own;
    uint32_t end = begin + own < row.quads ? begin + own : row.quads, ties = 0;
    auto tied = [&](float score, uint32_t token) {
        return score_key(score) == prefix && packed(score, token) >= outer;
    };
    for (uint32_t quad = begin; quad < end; ++quad) {
        Quad values = score_quad(row.source, quad);
        for (uint32_t i = 0; i < 4; ++i) {
            ties += tied(values.v[i], 4 * quad + i);
        }
    }
    uint64_t total;
    uint32_t before = (uint32_t)block_before(ties, shared.memory, total);
    wanted = wanted < total ? wanted : (uint32_t)total;
    if (threadIdx.x == 0) {
        shared.found_weight = 0;
    }
    __syncthreads();
    if (before < wanted && wanted <= before + ties) {
        for (uint32_t quad = begin; quad < end; ++quad) {
            Quad values = score_quad(row.source, quad);
            for (uint32_t i = 0; i < 4; ++i) {
                before += tied(values.v[i], 4 * quad + i);
                if (before == wanted && tied(values.v[i], 4 * quad + i)) {
                    shared.found_weight = packed(values.v[i], 4 * quad + i);
                }
            }
        }
    }
    __syncthreads();
    return shared.found_weight;
}

// Lists the tokens of the buckets from `first` to the found one that are `packed` at least `outer`, and sorts them. Returns how
// many; if they are more than LISTED_MAX, the list is of no use.
__device__ __noinline__ uint32_t list_tokens(CutShared& shared, const Row& row, uint32_t first, uint64_t outer) {
    uint32_t last = shared.found;
    if (threadIdx.x == 0) {
        shared.listed = 0;
    }
    __syncthreads();
    for_scores(row, [&](float largest) { return bucket_of(largest, row.max) <= last; },
               [&](float score, uint32_t token) {
        uint64_t key = packed(score, token);
        uint32_t bucket = bucket_of(score, row.max);
        if (bucket >= first && bucket <= last && key >= outer) {
            uint32_t place = atomicAdd(&shared.listed, 1u);
            if (place < LISTED_MAX) {
                shared.list[place] = key;
            }
        }
    });
    __syncthreads();
    uint32_t count = shared.listed, size = 32;
    if (count > LISTED_MAX) {
        return count;
    }
    while (size < count) {
        size *= 2;
    }
    for (uint32_t i = count + threadIdx.x; i < size; i += THREADS) {
        shared.list[i] = 0;
    }
    block_sort(shared.list, size);
    return count;
}

// The last token that the goal lets in, found in a sorted list of its bucket's tokens.
__device__ __forceinline__ uint64_t cut_of_list(CutShared& shared, const Row& row, const Goal& goal, uint32_t listed) {
    if (!goal.by_weight) {
        return shared.list[goal.count - shared.found_count - 1];
    }
    uint64_t weights[EACH], sum = 0, total;
    uint32_t kept = 0;
#pragma unroll
    for (uint32_t i = 0; i < EACH; ++i) {
        uint32_t place = EACH * threadIdx.x + i;
        weights[i] = place < listed ? fixed_weight(exact_exp(__fsub_rn(packed_score(shared.list[place]), row.max))) : 0;
        sum += weights[i];
    }
    uint64_t before = shared.found_weight + block_before(sum, shared.memory, total);
#pragma unroll
    for (uint32_t i = 0; i < EACH; ++i) {
        kept += EACH * threadIdx.x + i < listed && before < goal.weight;
        before += weights[i];
    }
    block_before(kept, shared.memory, total);
    return shared.list[total > 0 ? total - 1 : 0];
}

// The last token that the goal lets in, where the tokens through its bucket are too many for the list.
__device__ __forceinline__ uint64_t cut_within(CutShared& shared, const Row& row, const Goal& goal, uint64_t outer) {
    if (shared.found_through - shared.found_count <= LISTED_MAX) {
        uint32_t listed = list_tokens(shared, row, shared.found, outer);
        if (listed > 0 && listed <= LISTED_MAX) {
            return cut_of_list(shared, row, goal, listed);
        }
    }
    return refine(shared, row, goal, outer);
}

// The draw among the first `kept` of the list, cut further by weight (`threshold`, or a share of their own sum) and by share.
__device__ __noinline__ uint64_t draw_listed(CutShared& shared, const Row& row, const SampleRow& params, uint32_t kept,
                                             bool own_total, uint64_t threshold) {
    bool by_weight = params.flags & ROW_BY_WEIGHT, by_share = params.flags & ROW_BY_SHARE;
    uint64_t sum = 0, total = 0, before = 0;
    // A list of a few hundred takes one entry per thread.
    uint32_t each = kept <= THREADS ? 1 : EACH, first = each * threadIdx.x;
    float shares[EACH];
    for (uint32_t i = 0; i < EACH; ++i) {
        shares[i] = 0.0f;
        if (i < each && first + i < kept && (by_weight || by_share)) {
            shares[i] = exact_exp(__fsub_rn(packed_score(shared.list[first + i]), row.max));
            sum += fixed_weight(shares[i]);
        }
    }
    if (by_weight) {
        before = block_before(sum, shared.memory, total);
        threshold = own_total ? share_of(total, params.share) : threshold;
    }
    uint64_t best = 0;
#pragma unroll
    for (uint32_t i = 0; i < EACH; ++i) {
        if (i >= each || first + i >= kept) {
            break;
        }
        uint64_t weight = fixed_weight(shares[i]);
        bool keep = !by_weight || (weight > 0 && (before < threshold || first + i == 0));
        keep = keep && !(by_share && !(shares[i] >= params.min_p));
        if (keep) {
            uint64_t entry = shared.list[first + i];
            uint32_t token = packed_token(entry);
            Words4 words = philox_4x32_10(row.position, token / 4, 0, 0, row.noise_key);
            uint32_t low = token % 2 == 0 ? words.word[0] : words.word[1];
            uint32_t high = token % 2 == 0 ? words.word[2] : words.word[3];
            float noise = gumbel_from_bits(token % 4 < 2 ? low : high);
            uint64_t one = packed(__fadd_rn(packed_score(entry), noise), token);
            best = one > best ? one : best;
        }
        before += weight;
    }
    return block_max(best, shared.memory);
}

// The cut of top-k: 0 if the draw was made, `drawn`.
__device__ __forceinline__ uint64_t cut_by_rank(CutShared& shared, const Row& row, const SampleRow& params, uint64_t& drawn) {
    Goal goal = {false, params.top_k, 0};
    // By the runs' largest scores first: as many tokens lie in the buckets up to that of the k-th.
    clear_buckets(shared.buckets);
    for (uint32_t run = threadIdx.x; run < row.runs; run += THREADS) {
        uint32_t key = row.maxima[run];
        if (key != 0) {
            atomicAdd(&shared.buckets.counts[bucket_of(key_score(key), row.max)], 1u);
        }
    }
    find_bucket(shared, goal, 0, 0);
    uint32_t listed = shared.found < BUCKETS ? list_tokens(shared, row, 0, 1) : LISTED_MAX + 1;
    if (listed > LISTED_MAX) {
        clear_buckets(shared.buckets);
        for_scores(row, [](float) { return true; }, [&](float score, uint32_t) {
            add_to_bucket(shared.buckets, bucket_of(score, row.max), false, score, row.max);
        });
        find_bucket(shared, goal, 0, 0);
        if (shared.found == BUCKETS) {
            return 1;  // there are no more than k
        }
        if (shared.found_through > LISTED_MAX) {
            return cut_within(shared, row, goal, 1);
        }
        listed = list_tokens(shared, row, 0, 1);
    }
    drawn = draw_listed(shared, row, params, params.top_k < listed ? params.top_k : listed, true, 0);
    return 0;
}

// The cut of top-p among the tokens `packed` at least `cut`: 0 if the draw was made, `drawn`.
__device__ __forceinline__ uint64_t cut_by_weight(CutShared& shared, const Row& row, const SampleRow& params, uint64_t cut,
                                                  uint64_t& drawn) {
    auto weighs = [&](float score) { return bucket_of(score, row.max) <= WEIGHTLESS; };
    if (params.flags & ROW_BY_RANK) {
        clear_buckets(shared.buckets);
        for_scores(row, weighs, [&](float score, uint32_t token) {
            if (packed(score, token) >= cut && weighs(score)) {
                add_to_bucket(shared.buckets, bucket_of(score, row.max), true, score, row.max);
            }
        });
    }
    Goal goal = {true, 0, share_of(all_weights(shared), params.share)};
    find_bucket(shared, goal, 0, 0);
    if (shared.found == BUCKETS) {
        return cut;
    }
    if (shared.found_through > LISTED_MAX) {
        return cut_within(shared, row, goal, cut);
    }
    uint32_t listed = list_tokens(shared, row, 0, cut);
    drawn = draw_listed(shared, row, params, listed, false, goal.weight);
    return 0;
}

// The draw of a row, or its cut: one block. The largest scores are known from sampler_scan, the buckets' weights from
// sampler_weigh.
extern "C" __global__ void __launch_bounds__(THREADS, 1) sampler_cut(const __grid_constant__ SampleArgs args) {
    __shared__ CutShared shared;
    pdl_launch();
    pdl_wait();
    uint32_t index;
    if (!listed_row(args, LIST_CUT, blockIdx.x, index)) {
        return;
    }
    const SampleRow& params = args.rows[index];
    SampleState& state = args.states[index];
    uint32_t flags = params.flags;
    uint64_t best = 0;
    if (threadIdx.x < args.parts) {
        best = args.partials[(uint64_t)index * PARTS_MAX + threadIdx.x].best;
    }
    best = block_max(best, shared.memory);
    if (best == 0) {
        // No token may be drawn, as sampler_finish finds.
        if (threadIdx.x == 0) {
            state.cut = state.drawn = 0;
        }
        return;
    }
    Row row = cut_row(args, params, index, packed_score(best));
    if ((flags & (ROW_BY_RANK | ROW_BY_WEIGHT)) == ROW_BY_WEIGHT) {
        for (uint32_t i = threadIdx.x; i < BUCKETS; i += THREADS) {
            uint64_t place = (uint64_t)index * BUCKETS + i, weight = args.bucket_weights[place];
            shared.buckets.counts[i] = args.bucket_counts[place];
            shared.buckets.low[i] = (uint32_t)weight;
            shared.buckets.high[i] = (uint32_t)(weight >> 32);
            args.bucket_weights[place] = 0;
            args.bucket_counts[place] = 0;
        }
        __syncthreads();
    }
    uint64_t cut = 1, drawn = 0;
    if (flags & ROW_BY_RANK) {
        cut = cut_by_rank(shared, row, params, drawn);
    }
    if (cut != 0 && flags & ROW_BY_WEIGHT) {
        cut = cut_by_weight(shared, row, params, cut, drawn);
    }
    if (cut != 0 && !(flags & ROW_DRAWN_APART)) {
        Draw draw = {row.noise_key, row.position, __fadd_rn(row.max, GUMBEL_MIN), 0};
        draw_runs(row, params, cut, 0, row.runs, draw);
        drawn = block_max(draw.best, shared.memory);
    }
    if (threadIdx.x == 0) {
        state.cut = cut;
        state.drawn = drawn;
    }
}

}  // namespace polylink
