// The sampler's kernels but the cut-offs (sampler_cut.cu) and logprobs (sampler_logprobs.cu): scores, draws, the step's end.
//
// A step launches those that its rows need, in this order: sampler_adjust, sampler_scan, sampler_weigh, sampler_cut,
// sampler_draw, sampler_logprobs, sampler_finish. Rows are found over lists (SampleList), so that the geometry can be that of a bucket of rows.

#include "sampler.cuh"

namespace polylink {

constexpr uint32_t SEEN = 0x80000000u;

// Scores of the rows that have penalties, a bias or suppressed tokens: one block per row.
//
// Counts of a history's tokens are taken in a table that is 0 before and after: whoever takes a token's count out adjusts
// the token, so each is adjusted once.
extern "C" __global__ void __launch_bounds__(1024, 1) sampler_adjust(const __grid_constant__ SampleArgs args) {
    pdl_launch();
    pdl_wait();
    uint32_t index;
    if (!listed_row(args, LIST_ADJUSTED, blockIdx.x, index)) {
        return;
    }
    const SampleRow row = args.rows[index];
    const float* logits = args.logits + (uint64_t)row.logits_row * args.logits_stride;
    float* scores = args.scores + (uint64_t)row.scores_row * args.scores_stride;
    uint32_t* counts = args.counts + (uint64_t)row.scores_row * args.scores_stride;
    const uint32_t* history = args.histories + (uint64_t)row.slot * args.positions;
    bool penalties = row.flags & ROW_PENALTIES, wide = args.logits_stride % 4 == 0;
    uint32_t quads = (args.vocabulary + 3) / 4;
    float finite = 0.0f;
#pragma unroll 4
    for (uint32_t quad = threadIdx.x; quad < quads; quad += blockDim.x) {
        Quad values = load_quad(logits, quad, args.vocabulary, wide);
        finite = quad_finite(values, quad, args.vocabulary, finite);
        reinterpret_cast<float4*>(scores)[quad] = make_float4(values.v[0], values.v[1], values.v[2], values.v[3]);
    }
    if (penalties) {
        for (uint32_t i = threadIdx.x; i < row.history_length; i += blockDim.x) {
            if (i < row.prompt_length) {
                atomicOr(&counts[history[i]], SEEN);
            } else {
                atomicAdd(&counts[history[i]], 1u);
            }
        }
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < row.history_length; i += blockDim.x) {
            uint32_t token = history[i];
            uint32_t count = atomicExch(&counts[token], 0u);
            if (count == 0) {
                continue;
            }
            float score = scores[token];
            score = score > 0.0f ? __fdiv_rn(score, row.repetition) : __fmul_rn(score, row.repetition);
            count &= ~SEEN;
            if (count > 0) {
                score = __fsub_rn(score, __fmul_rn(row.frequency, (float)count));
                score = __fsub_rn(score, row.presence);
            }
            scores[token] = score;
        }
    }
    bool bad = __syncthreads_or(finite != finite);
    if (!(row.flags & ROW_BIAS_REPEATS)) {
        for (uint32_t i = threadIdx.x; i < row.bias_count; i += blockDim.x) {
            uint32_t token = row.bias[2 * i];
            scores[token] = __fadd_rn(scores[token], from_bits(row.bias[2 * i + 1]));
        }
    } else if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < row.bias_count; ++i) {
            uint32_t token = row.bias[2 * i];
            scores[token] = __fadd_rn(scores[token], from_bits(row.bias[2 * i + 1]));
        }
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < row.suppressed_count; i += blockDim.x) {
        scores[row.suppressed[i]] = minus_infinity();
    }
    if (threadIdx.x == 0) {
        args.states[index].bad = bad ? 1 : 0;
    }
}

constexpr uint32_t TOGETHER = 4;  // quads that a thread has under way at once

// One pass over all rows, several blocks per row: whether all is finite, the largest score, or, where all tokens may be
// drawn, the largest sum of score and noise. For rows with a cut-off also each run's largest score.
extern "C" __global__ void __launch_bounds__(256) sampler_scan(const __grid_constant__ SampleArgs args) {
    __shared__ uint64_t memory[33];
    pdl_launch();
    pdl_wait();
    uint32_t index;
    if (!listed_row(args, LIST_SCANNED, blockIdx.y, index)) {
        return;
    }
    const SampleRow& row = args.rows[index];
    const RowSource source = row_source(args, row);
    uint32_t flags = row.flags;
    bool given = flags & ROW_GIVEN, raw = !(flags & ROW_ADJUSTED), draws = !(flags & (ROW_GREEDY | ROW_CUT));
    Draw draw = {row.noise_key, row.position, minus_infinity(), 0};
    uint32_t begin, end, cuts = flags & ROW_CUT;
    uint32_t* maxima = args.maxima + (uint64_t)index * runs_of(args.vocabulary);
    part_of(args, blockIdx.x, begin, end);
    float best = minus_infinity();
    uint32_t token = 0;
    float finite = 0.0f;
    // Quads before this are whole, and read sixteen bytes at once.
    uint32_t vocabulary = args.vocabulary, whole = source.wide ? (end < vocabulary / 4 ? end : vocabulary / 4) : 0;
    for (uint32_t at = begin; at < end; at += TOGETHER * blockDim.x) {
        Quad four[TOGETHER];
        uint32_t known = 0;
        if (draws) {
            // What other blocks found: any older value is a bound as well.
            known = *(volatile uint32_t*)&args.bounds[index];
        }
        if (at + TOGETHER * blockDim.x <= whole) {
            const float4* values = reinterpret_cast<const float4*>(source.values) + at + threadIdx.x;
#pragma unroll
            for (uint32_t j = 0; j < TOGETHER; ++j) {
                float4 value = values[j * blockDim.x];
                four[j] = {{value.x, value.y, value.z, value.w}};
            }
            if (raw) {
#pragma unroll
                for (uint32_t j = 0; j < TOGETHER; ++j) {
                    finite = quad_finite(four[j], 0, 4, finite);
                }
            }
        } else {
#pragma unroll
            for (uint32_t j = 0; j < TOGETHER; ++j) {
                uint32_t quad = at + j * blockDim.x + threadIdx.x;
                float none = minus_infinity();
                four[j] = {{none, none, none, none}};
                if (quad < end) {
                    four[j] = load_quad(source.values, quad, vocabulary, source.wide);
                    finite = raw ? quad_finite(four[j], quad, vocabulary, finite) : finite;
                }
            }
        }
        float max = minus_infinity();
#pragma unroll
        for (uint32_t j = 0; j < TOGETHER; ++j) {
            uint32_t quad = at + j * blockDim.x + threadIdx.x;
            if (source.mask != nullptr && quad < end) {
                mask_quad(source, four[j], quad);
            }
            max = fmaxf(max, quad_max(four[j]));
        }
        if (given) {
            continue;
        }
        // Division keeps the order: the largest quotient is that of the largest. Greedy rows divide nothing.
        max = source.divides ? __fdiv_rn(max, source.temperature) : max;
        if (cuts) {
#pragma unroll
            for (uint32_t j = 0; j < TOGETHER; ++j) {
                uint32_t run = (at + j * blockDim.x) / RUN_QUADS + threadIdx.x / 32;
                float largest = quad_max(four[j]);
#pragma unroll
                for (int distance = 16; distance > 0; distance /= 2) {
                    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
                }
                if (threadIdx.x % 32 == 0 && run * RUN_QUADS < end) {
                    maxima[run] = score_key(source.divides ? __fdiv_rn(largest, source.temperature) : largest);
                }
            }
            best = fmaxf(best, max);  // which token has it does not matter
            continue;
        }
        if (!draws) {
            if (max > best) {
#pragma unroll
                for (uint32_t j = 0; j < TOGETHER; ++j) {
#pragma unroll
                    for (uint32_t i = 0; i < 4; ++i) {
                        if (four[j].v[i] > best) {
                            best = four[j].v[i];
                            token = 4 * (at + j * blockDim.x + threadIdx.x) + i;
                        }
                    }
                }
            }
            continue;
        }
        float own = max;  // a thread whose largest score cannot win divides nothing else
        draw.bound = known == 0 ? draw.bound : fmaxf(draw.bound, key_score(known));
        // Noise is no less than GUMBEL_MIN: so much the warp's largest score reaches at least.
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) {
            max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, distance));
            draw.bound = fmaxf(draw.bound, __shfl_xor_sync(0xffffffffu, draw.bound, distance));
        }
        draw.bound = fmaxf(draw.bound, __fadd_rn(max, GUMBEL_MIN));
        if (__fadd_rn(own, GUMBEL_MAX) >= draw.bound) {
#pragma unroll
            for (uint32_t j = 0; j < TOGETHER; ++j) {
                divide_quad(source, four[j]);
                draw_quad(draw, four[j], at + j * blockDim.x + threadIdx.x);
            }
        }
        float bound = draw.bound;
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) {
            bound = fmaxf(bound, __shfl_xor_sync(0xffffffffu, bound, distance));
        }
        if (threadIdx.x % 32 == 0 && score_key(bound) > known) {
            atomicMax(&args.bounds[index], score_key(bound));
        }
    }
    uint64_t largest = block_max(draws ? draw.best : packed(best, token), memory);
    bool bad = __syncthreads_or(finite != finite);
    if (threadIdx.x == 0) {
        args.partials[(uint64_t)index * PARTS_MAX + blockIdx.x] = {largest, bad ? 1u : 0u, 0u};
    }
}

// The draws for which sampler_cut has found no list but only a cut: several blocks per row.
extern "C" __global__ void __launch_bounds__(256) sampler_draw(const __grid_constant__ SampleArgs args) {
    __shared__ uint64_t memory[33];
    pdl_launch();
    pdl_wait();
    uint32_t index;
    if (!listed_row(args, LIST_CUT, blockIdx.y, index)) {
        return;
    }
    const SampleRow& params = args.rows[index];
    SampleState& state = args.states[index];
    uint64_t cut = state.cut;
    if (!(params.flags & ROW_DRAWN_APART) || cut == 0) {
        return;
    }
    uint64_t best = threadIdx.x < args.parts ? args.partials[(uint64_t)index * PARTS_MAX + threadIdx.x].best : 0;
    Row row = cut_row(args, params, index, packed_score(block_max(best, memory)));
    uint32_t begin, end;
    part_of(args, blockIdx.x, begin, end);
    Draw draw = {row.noise_key, row.position, __fadd_rn(row.max, GUMBEL_MIN), 0};
    draw_runs(row, params, cut, begin / RUN_QUADS, (end + RUN_QUADS - 1) / RUN_QUADS, draw);
    uint64_t drawn = block_max(draw.best, memory);
    if (threadIdx.x == 0 && drawn != 0) {
        atomicMax(reinterpret_cast<unsigned long long*>(&state.drawn), (unsigned long long)drawn);
    }
}

// The step's end, one block: every row's token; then, unless a row failed, the slots' last samples and histories.
extern "C" __global__ void __launch_bounds__(1024, 1) sampler_finish(const __grid_constant__ SampleArgs args) {
    __shared__ uint32_t failed;
    pdl_launch();
    pdl_wait();
    if (threadIdx.x == 0) {
        failed = 0;
    }
    __syncthreads();
    uint32_t rows = args.header->rows, lane = threadIdx.x % 32;
    for (uint32_t index = threadIdx.x / 32; index < rows; index += blockDim.x / 32) {
        const SampleRow& row = args.rows[index];
        uint32_t flags = row.flags;
        uint64_t best = 0;
        uint32_t bad = 0;
        for (uint32_t part = lane; part < args.parts; part += 32) {
            SamplePartial partial = args.partials[(uint64_t)index * PARTS_MAX + part];
            best = partial.best > best ? partial.best : best;
            bad |= partial.bad;
        }
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) {
            uint64_t other = __shfl_xor_sync(0xffffffffu, best, distance);
            best = other > best ? other : best;
            bad |= __shfl_xor_sync(0xffffffffu, bad, distance);
        }
        if (lane != 0) {
            continue;
        }
        const SampleState& state = args.states[index];
        bad |= flags & ROW_ADJUSTED ? state.bad : 0;
        best = flags & ROW_CUT && best != 0 ? state.drawn : best;
        SampleResult& result = args.results[index];
        uint32_t token = flags & ROW_GIVEN ? row.given : best == 0 ? NO_TOKEN : packed_token(best);
        token = bad ? NOT_FINITE : token;
        float logprob = 0.0f;
        if (token >= args.vocabulary) {
            atomicOr(&failed, 1u);
            logprob = minus_infinity();
        } else if (flags & ROW_LOGPROBS) {
            float logit = args.logits[(uint64_t)row.logits_row * args.logits_stride + token];
            logprob = __fsub_rn(__fsub_rn(logit, state.max), state.log_sum);
        }
        result.token = {token, logprob};
        result.rank = flags & ROW_GIVEN ? state.rank : 0;
        result.top_count = row.top_count;
        args.bounds[index] = 0;
    }
    __syncthreads();
    if (failed) {
        return;
    }
    for (uint32_t index = threadIdx.x; index < rows; index += blockDim.x) {
        const SampleRow& row = args.rows[index];
        uint32_t token = args.results[index].token.token;
        if (row.flags & ROW_GIVEN) {
            continue;
        }
        if (row.append_at < args.positions) {
            args.histories[(uint64_t)row.slot * args.positions + row.append_at] = token;
        }
        if (row.flags & ROW_LAST) {
            args.last_sample[row.slot] = token;
        }
    }
}

}  // namespace polylink
