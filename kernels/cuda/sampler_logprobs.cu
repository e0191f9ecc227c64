// Logprobs of the raw logits (rule 4), the likeliest tokens, and the rank of a given one: one block per row.
//
// The 64 lanes of a sum are chains over the whole row: two warps add, tile by tile, what all have made of the tile.

#include "sampler.cuh"

namespace polylink {

constexpr uint32_t TOP_LIST = 1024;  // tokens that may be among the likeliest; hardly ever more than two dozen
constexpr uint32_t TILE = 4096;      // a quad per thread

// The likeliest tokens in `keys[..top_count]`, by so many passes over the row: where the list is too short.
__device__ __noinline__ void top_by_passes(const float* logits, uint32_t vocabulary, bool wide, uint32_t top_count,
                                           uint64_t* keys, uint64_t* memory) {
    uint64_t last = ~0ull;
    for (uint32_t place = 0; place < top_count; ++place) {
        uint64_t best = 0;
        for (uint32_t quad = threadIdx.x; quad < (vocabulary + 3) / 4; quad += blockDim.x) {
            Quad values = load_quad(logits, quad, vocabulary, wide);
            for (uint32_t i = 0; i < 4; ++i) {
                uint64_t key = packed(values.v[i], 4 * quad + i);
                best = key < last && key > best ? key : best;
            }
        }
        last = block_max(best, memory);
        if (threadIdx.x == 0) {
            keys[place] = last;
        }
    }
    __syncthreads();
}

// A score that at least `count` tokens reach, and not many more: threads' largest scores, `own`, by buckets. Minus infinity if
// there are no more threads with tokens.
__device__ __forceinline__ float reached_by(uint32_t count, float own, float max, uint32_t* counts, uint64_t* memory) {
    __shared__ uint32_t found;
    if (threadIdx.x == 0) {
        found = BUCKETS;
    }
    for (uint32_t i = threadIdx.x; i < BUCKETS; i += blockDim.x) {
        counts[i] = 0;
    }
    __syncthreads();
    uint32_t bucket = bucket_of(own, max);
    if (own > minus_infinity()) {
        atomicAdd(&counts[bucket], 1u);
    }
    __syncthreads();
    uint32_t first = counts[2 * threadIdx.x], second = counts[2 * threadIdx.x + 1];
    uint64_t total;
    uint32_t before = (uint32_t)block_before(first + second, memory, total);
    if (before < count && before + first + second >= count) {
        found = 2 * threadIdx.x + (before + first < count ? 1 : 0);
    }
    __syncthreads();
    if (found == BUCKETS) {
        return minus_infinity();
    }
    // The smallest of the largest scores that lie in the buckets up to there.
    bool counted = own > minus_infinity() && bucket <= found;
    return packed_score(~block_max(counted ? ~packed(own, 0) : 0, memory));
}

extern "C" __global__ void __launch_bounds__(1024, 1) sampler_logprobs(const __grid_constant__ SampleArgs args) {
    __shared__ __align__(16) float tiles[2][TILE];
    __shared__ uint64_t keys[TOP_LIST];
    __shared__ uint64_t memory[33];
    __shared__ uint32_t listed, larger;
    pdl_launch();
    pdl_wait();
    uint32_t index;
    if (!listed_row(args, LIST_SCORED, blockIdx.x, index)) {
        return;
    }
    const SampleRow& row = args.rows[index];
    const float* logits = args.logits + (uint64_t)row.logits_row * args.logits_stride;
    uint32_t vocabulary = args.vocabulary, quads = (vocabulary + 3) / 4, top_count = row.top_count;
    bool wide = args.logits_stride % 4 == 0, wanted = row.flags & ROW_LOGPROBS, given = row.flags & ROW_GIVEN;
    SampleResult& result = args.results[index];
    if (threadIdx.x == 0) {
        listed = larger = 0;
    }
    float own = minus_infinity();
    uint32_t own_token = 0;
    if (wanted) {
#pragma unroll 4
        for (uint32_t quad = threadIdx.x; quad < quads; quad += blockDim.x) {
            Quad values = load_quad(logits, quad, vocabulary, wide);
#pragma unroll
            for (uint32_t i = 0; i < 4; ++i) {
                if (values.v[i] > own) {
                    own = values.v[i];
                    own_token = 4 * quad + i;
                }
            }
        }
    }
    uint64_t likeliest = block_max(packed(own, own_token), memory);
    float max = likeliest == 0 ? minus_infinity() : logits[packed_token(likeliest)];  // −0 stays −0
    float least = minus_infinity();
    if (top_count > 0) {
        least = reached_by(top_count, own, max, reinterpret_cast<uint32_t*>(tiles), memory);
    }
    uint32_t given_token = row.given;
    float mine = given ? logits[given_token] : 0.0f, lane = 0.0f, none = minus_infinity();
    uint32_t count = 0, turn = 0;
    Quad next = threadIdx.x < quads ? load_quad(logits, threadIdx.x, vocabulary, wide) : Quad{{none, none, none, none}};
    __syncthreads();  // the buckets are no longer read
    for (uint32_t at = 0; at < quads; at += blockDim.x, turn ^= 1) {
        uint32_t quad = at + threadIdx.x, after = quad + blockDim.x;
        Quad values = next;
        if (after < quads) {
            next = load_quad(logits, after, vocabulary, wide);
        }
        float weights[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (quad < quads) {
#pragma unroll
            for (uint32_t i = 0; i < 4; ++i) {
                if (wanted && 4 * quad + i < vocabulary) {
                    weights[i] = exact_exp(__fsub_rn(values.v[i], max));
                }
            }
            if (top_count > 0) {
#pragma unroll
                for (uint32_t i = 0; i < 4; ++i) {
                    if (values.v[i] >= least && values.v[i] > minus_infinity()) {
                        uint32_t place = atomicAdd(&listed, 1u);
                        if (place < TOP_LIST) {
                            keys[place] = packed(values.v[i], 4 * quad + i);
                        }
                    }
                }
            }
            if (given) {
#pragma unroll
                for (uint32_t i = 0; i < 4; ++i) {
                    count += values.v[i] > mine || (values.v[i] == mine && 4 * quad + i < given_token);
                }
            }
        }
        // The barrier of the tile before has also ended what was added of the tile before that.
        reinterpret_cast<float4*>(tiles[turn])[threadIdx.x] = make_float4(weights[0], weights[1], weights[2], weights[3]);
        __syncthreads();
        if (wanted && threadIdx.x < 64) {
            // Adding 0 for what lies beyond the vocabulary changes no bit.
#pragma unroll 16
            for (uint32_t i = 0; i < TILE / 64; ++i) {
                lane = __fadd_rn(lane, tiles[turn][i * 64 + threadIdx.x]);
            }
        }
    }
    if (count > 0) {
        atomicAdd(&larger, count);
    }
    __syncthreads();
    float* lanes = tiles[0];
    if (threadIdx.x < 64) {
        lanes[threadIdx.x] = lane;
    }
    for (uint32_t width = 32; width > 0; width /= 2) {
        __syncthreads();
        if (threadIdx.x < width) {
            lanes[threadIdx.x] = __fadd_rn(lanes[threadIdx.x], lanes[threadIdx.x + width]);
        }
    }
    __syncthreads();
    float log_sum = wanted ? exact_ln(lanes[0]) : 0.0f;
    if (top_count > 0) {
        uint32_t found = listed;
        if (found <= TOP_LIST) {
            uint32_t size = 32;
            while (size < found) {
                size *= 2;
            }
            for (uint32_t i = found + threadIdx.x; i < size; i += blockDim.x) {
                keys[i] = 0;
            }
            block_sort(keys, size);
        } else {
            top_by_passes(logits, vocabulary, wide, top_count, keys, memory);
        }
        if (threadIdx.x < top_count) {
            uint64_t key = keys[threadIdx.x];
            uint32_t token = key == 0 ? 0 : packed_token(key);
            result.top[threadIdx.x] = {token, __fsub_rn(__fsub_rn(logits[token], max), log_sum)};
        }
    }
    if (threadIdx.x == 0) {
        SampleState& state = args.states[index];
        state.max = max;
        state.log_sum = log_sum;
        state.rank = given ? 1 + larger : 0;
    }
}

}  // namespace polylink
