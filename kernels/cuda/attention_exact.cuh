// Exact attention (docs/numerics.md, rule 5) over a cache of f32, bf16 or 8-bit integers.
//
// An item is up to 16 queries that read the same keys and values: some neighbouring rows of a sequence times heads of one KV
// head (blockIdx.y). Its tiles of 256 absolute positions come one after the other, each alone, and are folded ascending; or, with
// few rows in the step, each tile is an item of its own that leaves its part in `partial`, and `attention_fold` folds the parts in
// the same order. Both ways are the same operations, so a row's bits depend on neither.
//
// Keys, then values of a tile come in chunks of CHUNK positions through a ring of buffers in shared memory, filled in the
// background. A thread sums the scores of one position and four queries, and later two dimensions of four queries over the
// positions; what a query may not see is skipped, never multiplied.
#pragma once

#include "exact_tools.cuh"
#include "kv_layout.cuh"
#include "kv_values.cuh"
#include "quantise.cuh"

namespace polylink::exact {

constexpr int TILE = 256, QUERIES = 16, THREADS = 256;
constexpr uint32_t WHOLE = 0xffffffffu;

struct AttentionItem {
    uint32_t first_row;
    uint32_t rows;            // neighbours, of one sequence
    uint32_t first_position;  // of the first row
    uint32_t table;           // where the sequence's block table begins
    uint32_t first_tile;
    uint32_t tiles;           // 1 if it is a part
    uint32_t part;            // where the part is left, or WHOLE
    uint32_t spare;
};

struct AttentionMerge {
    uint32_t row;
    uint32_t index;           // of the row within its item
    uint32_t first_part;
    uint32_t parts;
};

struct ExactAttentionParams {
    const float* qkv;             // [rows][(query_heads + 2 × kv_heads) × head_dim]
    const uint8_t* cache;
    const AttentionItem* items;
    const AttentionMerge* merges;
    const uint32_t* block_tables;
    const StepCounts* counts;
    float* partial;               // [part][gridDim.y of the items][QUERIES][head_dim + 2]: largest, sum, values
    float* out;                   // [rows][query_heads × head_dim] f32, or null
    int8_t* out_quants;           // or as RowForm::Q8
    float* out_scales;
    KvShape shape;
    uint32_t layer;
    uint32_t query_heads;
    uint32_t window;              // 0: none
    float scale;
    float soft_cap;               // 0: none
};

// Writes two dimensions of a query's finished output. Q8: the sixteen lanes of a block of 32 dimensions call together, all lanes
// of the warp with them.
__device__ __forceinline__ void write_output(const ExactAttentionParams& p, bool valid, uint32_t row, uint32_t head,
                                             uint32_t pair, float2 value) {
    const uint32_t width = p.query_heads * p.shape.head_dim, at = head * p.shape.head_dim + pair * 2;
    if (p.out != nullptr) {
        if (valid) {
            *reinterpret_cast<float2*>(p.out + (uint64_t)row * width + at) = value;
        }
        return;
    }
    const float largest = largest_of_lanes<16>(valid ? fmaxf(fabsf(value.x), fabsf(value.y)) : 0.0f);
    const float scale = quantise_scale(largest);
    if (valid) {
        const uint64_t pitch = q8_pitch(width);
        char2 quants = {(signed char)quantise_value(value.x, scale), (signed char)quantise_value(value.y, scale)};
        *reinterpret_cast<char2*>(p.out_quants + row * pitch + at) = quants;
        if (at % 32 == 0) {
            p.out_scales[row * (pitch / 32) + at / 32] = scale;
        }
    }
}

// UNITS: how many times the threads go over pairs of dimensions × fours of queries.
template <Kv kind, int UNITS, int CHUNK, int RING>
struct ExactAttention {
    using V = Values<kind>;
    static constexpr int CHUNKS = TILE / CHUNK;

    static __device__ __forceinline__ uint32_t row_bytes(uint32_t dim) { return dim * V::BYTES + 16; }
    static __device__ __forceinline__ uint32_t buffer_bytes(uint32_t dim) {
        return CHUNK * row_bytes(dim) + (SCALED<kind> ? CHUNK * 4 : 0);
    }

    // What a block knows of its item.
    struct Work {
        AttentionItem item;
        uint32_t kv_head, first_head, heads, queries;  // heads of the item from first_head on; queries = rows × heads
        uint32_t begin, end;                           // positions that some query sees
        uint32_t per;                                  // queries whose values a thread sums: 4, or 2 if there are few
    };

    // Load `number` of the item: chunk number % CHUNKS of the keys, then of the values, of tile number / (2 CHUNKS).
    static __device__ __forceinline__ void load(const ExactAttentionParams& p, const Work& work, uint32_t number, uint32_t ring) {
        const uint32_t dim = p.shape.head_dim, tile = number / (2 * CHUNKS), part = number / CHUNKS % 2;
        const uint32_t first = (work.item.first_tile + tile) * TILE + number % CHUNKS * CHUNK;
        if (tile < work.item.tiles && first < work.end && first + CHUNK > work.begin) {
            constexpr uint32_t SHARERS = THREADS / CHUNK;
            const uint32_t row = threadIdx.x / SHARERS, position = first + row;
            const uint32_t buffer = ring + number % RING * buffer_bytes(dim);
            if (position < work.end) {
                const uint32_t block = p.block_tables[work.item.table + position / KV_BLOCK_TOKENS];
                const uint32_t token = position % KV_BLOCK_TOKENS;
                const uint8_t* from;
                if constexpr (SCALED<kind>) {
                    const uint8_t* start = p.cache + kv_byte_start(p.shape, block, p.layer, part, work.kv_head);
                    from = start + token * dim;
                    if (threadIdx.x % SHARERS == 0) {
                        copy_4(buffer + CHUNK * row_bytes(dim) + row * 4, start + KV_BLOCK_TOKENS * dim + token * 4);
                    }
                } else {
                    from = p.cache + kv_value(p.shape, block, p.layer, part, work.kv_head, token, 0) * V::BYTES;
                }
                for (uint32_t at = threadIdx.x % SHARERS * 16; at < dim * V::BYTES; at += SHARERS * 16) {
                    copy_16(buffer + row * row_bytes(dim) + at, from + at);
                }
            }
        }
        copies_commit();
    }

    static __device__ __forceinline__ void run(const ExactAttentionParams& p, uint8_t* shared) {
        pdl_launch();
        const uint32_t dim = p.shape.head_dim, pairs = dim / 2;
        uint8_t* ring = shared;
        float* queries = reinterpret_cast<float*>(shared + RING * buffer_bytes(dim));  // [QUERIES][dim]
        float4* scores = reinterpret_cast<float4*>(queries + QUERIES * dim);           // [QUERIES / 4][TILE]
        float* largest = reinterpret_cast<float*>(scores + QUERIES / 4 * TILE);        // of all tiles so far
        float* sum = largest + QUERIES;
        float* keep = sum + QUERIES;      // what is multiplied by to go on
        float* take = keep + QUERIES;     // the tile's factor
        uint32_t* kind_of = reinterpret_cast<uint32_t*>(take + QUERIES);  // 0: not seen, 1: first, 2: folded
        uint32_t* seen_from = kind_of + QUERIES;
        uint32_t* seen_to = seen_from + QUERIES;
        const uint32_t ring_address = shared_address(ring);
        const uint32_t group = p.query_heads / p.shape.heads, per_head = (group + QUERIES - 1) / QUERIES;
        pdl_wait();
        const uint32_t items = p.counts->attention_items;
        for (uint32_t number = blockIdx.x; number < items; number += gridDim.x) {
            Work work;
            work.item = p.items[number];
            work.kv_head = blockIdx.y / per_head;
            const uint32_t in_group = blockIdx.y % per_head * QUERIES;
            work.first_head = work.kv_head * group + in_group;
            work.heads = group - in_group < QUERIES ? group - in_group : QUERIES;
            work.queries = work.item.rows * work.heads;
            work.per = work.queries <= 4 ? 2 : 4;
            const uint32_t last = work.item.first_position + work.item.rows;
            const auto first_seen = [&](uint32_t position) {
                return p.window != 0 && position + 1 > p.window ? position + 1 - p.window : 0;
            };
            work.begin = first_seen(work.item.first_position);
            work.end = last;
            const uint32_t all_begin = first_seen(last - 1), all_end = work.item.first_position + 1;
            __syncthreads();  // of the item before, everything was read
            for (uint32_t load_number = 0; load_number < RING - 1; ++load_number) {
                load(p, work, load_number, ring_address);
            }
            uint32_t next_load = RING - 1;
            const uint32_t width = (p.query_heads + 2 * p.shape.heads) * dim;
            for (uint32_t i = threadIdx.x; i < QUERIES * dim; i += THREADS) {
                const uint32_t q = i / dim, d = i % dim;
                float value = 0.0f;
                if (q < work.queries) {
                    const uint32_t row = work.item.first_row + q / work.heads, head = work.first_head + q % work.heads;
                    value = p.qkv[(uint64_t)row * width + head * dim + d];
                }
                queries[i] = value;
            }
            if (threadIdx.x < QUERIES) {
                const uint32_t q = threadIdx.x, position = work.item.first_position + q / work.heads;
                largest[q] = -INFINITY;
                sum[q] = 0.0f;
                seen_from[q] = q < work.queries ? first_seen(position) : 0;
                seen_to[q] = q < work.queries ? position + 1 : 0;
            }
            float values[UNITS][4][2] = {}, output[UNITS][4][2] = {};
            for (uint32_t tile = 0; tile < work.item.tiles; ++tile) {
                const uint32_t base = (work.item.first_tile + tile) * TILE;
                for (uint32_t chunk = 0; chunk < CHUNKS; ++chunk) {
                    const uint32_t load_number = tile * 2 * CHUNKS + chunk;
                    copies_wait<RING - 2>();
                    __syncthreads();
                    load(p, work, next_load++, ring_address);
                    score(p, work, ring + load_number % RING * buffer_bytes(dim), queries, scores, seen_from, seen_to,
                          base + chunk * CHUNK, chunk);
                }
                __syncthreads();
                softmax(work, scores, seen_from, seen_to, base, largest, sum, keep, take, kind_of);
                for (uint32_t chunk = 0; chunk < CHUNKS; ++chunk) {
                    const uint32_t load_number = tile * 2 * CHUNKS + CHUNKS + chunk;
                    copies_wait<RING - 2>();
                    __syncthreads();
                    load(p, work, next_load++, ring_address);
                    const uint8_t* buffer = ring + load_number % RING * buffer_bytes(dim);
                    const uint32_t first = base + chunk * CHUNK;
                    if (work.per == 2) {
                        add_values<2>(work, buffer, dim, scores, seen_from, seen_to, first, chunk, all_begin, all_end, values);
                    } else {
                        add_values<4>(work, buffer, dim, scores, seen_from, seen_to, first, chunk, all_begin, all_end, values);
                    }
                }
#pragma unroll
                for (int unit = 0; unit < UNITS; ++unit) {
                    const uint32_t share = (threadIdx.x + unit * THREADS) / pairs;
#pragma unroll
                    for (uint32_t i = 0; i < 4; ++i) {
                        const uint32_t q = share * work.per + i;
                        const uint32_t how = q < QUERIES && i < work.per ? kind_of[q] : 0;
#pragma unroll
                        for (int d = 0; d < 2; ++d) {
                            if (how == 1) {
                                output[unit][i][d] = values[unit][i][d];
                            } else if (how == 2) {
                                output[unit][i][d] =
                                    fmaf(output[unit][i][d], keep[q], __fmul_rn(values[unit][i][d], take[q]));
                            }
                            values[unit][i][d] = 0.0f;
                        }
                    }
                }
            }
            copies_wait<0>();
            finish_item(p, work, dim, pairs, output, largest, sum);
        }
    }

    static __device__ __forceinline__ void score(const ExactAttentionParams& p, const Work& work, const uint8_t* buffer,
                                                 const float* queries, float4* scores, const uint32_t* seen_from,
                                                 const uint32_t* seen_to, uint32_t first, uint32_t chunk) {
        const uint32_t dim = p.shape.head_dim, in_chunk = threadIdx.x % CHUNK, share = threadIdx.x / CHUNK;
        if (share >= QUERIES / 4 || first >= work.end || first + CHUNK <= work.begin) {
            return;
        }
        const uint8_t* row = buffer + in_chunk * row_bytes(dim);
        float key_scale = 1.0f;
        if constexpr (SCALED<kind>) {
            key_scale = reinterpret_cast<const float*>(buffer + CHUNK * row_bytes(dim))[in_chunk];
        }
        // Of a position that a query does not see, whatever lies there is summed, and not used.
        const auto finished = [&](float sum, uint32_t q) {
            const float value = __fmul_rn(__fmul_rn(sum, key_scale), p.scale);
            const bool seen = first + in_chunk >= seen_from[q] && first + in_chunk < seen_to[q];
            return !seen ? -INFINITY : p.soft_cap != 0.0f ? exact_soft_cap(value, p.soft_cap) : value;
        };
        float4* to = scores + chunk * CHUNK + in_chunk;
        if (work.queries <= 4) {
            // Few: each thread has one.
            if (share < work.queries) {
                const float4* query = reinterpret_cast<const float4*>(queries + share * dim);
                float sum = 0.0f;
#pragma unroll 8
                for (uint32_t i = 0; i < dim / 4; ++i) {
                    const float4 key = V::four(row, i), x = query[i];
                    sum = fmaf(x.x, key.x, sum);
                    sum = fmaf(x.y, key.y, sum);
                    sum = fmaf(x.z, key.z, sum);
                    sum = fmaf(x.w, key.w, sum);
                }
                reinterpret_cast<float*>(to)[share] = finished(sum, share);
            }
            return;
        }
        if (share * 4 >= work.queries) {
            return;
        }
        const float4* query = reinterpret_cast<const float4*>(queries + share * 4 * dim);
        float sums[4] = {};
#pragma unroll 4
        for (uint32_t i = 0; i < dim / 4; ++i) {
            const float4 key = V::four(row, i);
#pragma unroll
            for (int q = 0; q < 4; ++q) {
                const float4 x = query[q * (dim / 4) + i];
                sums[q] = fmaf(x.x, key.x, sums[q]);
                sums[q] = fmaf(x.y, key.y, sums[q]);
                sums[q] = fmaf(x.z, key.z, sums[q]);
                sums[q] = fmaf(x.w, key.w, sums[q]);
            }
        }
#pragma unroll
        for (int q = 0; q < 4; ++q) {
            sums[q] = finished(sums[q], share * 4 + q);
        }
        to[share * TILE] = make_float4(sums[0], sums[1], sums[2], sums[3]);
    }

    // A warp per query: the tile's largest score, the probabilities and their sum by rule 4, and how the tile is folded.
    static __device__ __forceinline__ void softmax(const Work& work, float4* scores, const uint32_t* seen_from,
                                                   const uint32_t* seen_to, uint32_t base, float* largest, float* sum,
                                                   float* keep, float* take, uint32_t* kind_of) {
        const uint32_t lane = threadIdx.x % 32;
        for (uint32_t q = threadIdx.x / 32; q < QUERIES; q += THREADS / 32) {
            const uint32_t from = seen_from[q] > base ? seen_from[q] : base;
            const uint32_t to = seen_to[q] < base + TILE ? seen_to[q] : base + TILE;
            if (from >= to) {
                if (lane == 0) {
                    kind_of[q] = 0;
                }
                continue;
            }
            float* own = reinterpret_cast<float*>(scores + q / 4 * TILE) + q % 4;
            float most = -INFINITY, mine[TILE / 32];
#pragma unroll
            for (int i = 0; i < TILE / 32; ++i) {
                const uint32_t at = lane + 32 * i;
                const bool seen = base + at >= from && base + at < to;
                mine[i] = seen ? own[at * 4] : -INFINITY;
                most = fmaxf(most, mine[i]);
            }
            most = largest_of_lanes<32>(most);
            float low = 0.0f, high = 0.0f;
#pragma unroll
            for (int i = 0; i < TILE / 32; ++i) {
                const uint32_t at = lane + 32 * i;
                if (base + at >= from && base + at < to) {
                    const float probability = exact_exp(__fsub_rn(mine[i], most));
                    own[at * 4] = probability;
                    if (i % 2 == 0) {
                        low = __fadd_rn(low, probability);
                    } else {
                        high = __fadd_rn(high, probability);
                    }
                } else {
                    own[at * 4] = 0.0f;
                }
            }
            float total = __fadd_rn(low, high);
#pragma unroll
            for (int apart = 16; apart > 0; apart /= 2) {
                total = __fadd_rn(total, __shfl_down_sync(0xffffffffu, total, apart));
            }
            if (lane == 0) {
                if (largest[q] == -INFINITY) {
                    kind_of[q] = 1;
                    largest[q] = most;
                    sum[q] = total;
                } else {
                    const float now = fmaxf(largest[q], most);
                    const float a = exact_exp(__fsub_rn(largest[q], now)), b = exact_exp(__fsub_rn(most, now));
                    kind_of[q] = 2;
                    keep[q] = a;
                    take[q] = b;
                    sum[q] = fmaf(sum[q], a, __fmul_rn(total, b));
                    largest[q] = now;
                }
            }
        }
    }

    template <int per>
    static __device__ __forceinline__ void add_values(const Work& work, const uint8_t* buffer, uint32_t dim,
                                                      const float4* scores, const uint32_t* seen_from,
                                                      const uint32_t* seen_to, uint32_t first, uint32_t chunk,
                                                      uint32_t all_begin, uint32_t all_end, float (&values)[UNITS][4][2]) {
        const uint32_t from = work.begin > first ? work.begin : first;
        const uint32_t to = work.end < first + CHUNK ? work.end : first + CHUNK;
        if (from >= to) {
            return;
        }
        const bool all = from >= all_begin && to <= all_end;
        const uint32_t pairs = dim / 2;
        const float* scales = reinterpret_cast<const float*>(buffer + CHUNK * row_bytes(dim));
#pragma unroll
        for (int unit = 0; unit < UNITS; ++unit) {
            const uint32_t number = threadIdx.x + unit * THREADS, share = number / pairs, pair = number % pairs;
            if (share >= QUERIES / per || share * per >= work.queries) {
                continue;
            }
            const float4* probabilities = scores + share * per / 4 * TILE + chunk * CHUNK;
            const uint8_t* column = buffer;
            const auto weights_of = [&](uint32_t at, float (&weights)[per]) {
                if constexpr (per == 2) {
                    const float2 two = reinterpret_cast<const float2*>(probabilities + at)[share % 2];
                    weights[0] = two.x, weights[1] = two.y;
                } else {
                    const float4 all_four = probabilities[at];
                    weights[0] = all_four.x, weights[1] = all_four.y, weights[2] = all_four.z, weights[3] = all_four.w;
                }
                if constexpr (SCALED<kind>) {
                    const float scale = scales[at];
#pragma unroll
                    for (int i = 0; i < per; ++i) {
                        weights[i] = __fmul_rn(weights[i], scale);
                    }
                }
            };
            if (all) {
#pragma unroll 4
                for (uint32_t at = from - first; at < to - first; ++at) {
                    const float2 value = V::two(column + at * row_bytes(dim), pair);
                    float weights[per];
                    weights_of(at, weights);
#pragma unroll
                    for (int i = 0; i < per; ++i) {
                        values[unit][i][0] = fmaf(weights[i], value.x, values[unit][i][0]);
                        values[unit][i][1] = fmaf(weights[i], value.y, values[unit][i][1]);
                    }
                }
            } else {
                uint32_t low[per], high[per];
#pragma unroll
                for (int i = 0; i < per; ++i) {
                    low[i] = seen_from[share * per + i];
                    high[i] = seen_to[share * per + i];
                }
                for (uint32_t at = from - first; at < to - first; ++at) {
                    const float2 value = V::two(column + at * row_bytes(dim), pair);
                    float weights[per];
                    weights_of(at, weights);
#pragma unroll
                    for (int i = 0; i < per; ++i) {
                        if (first + at >= low[i] && first + at < high[i]) {
                            values[unit][i][0] = fmaf(weights[i], value.x, values[unit][i][0]);
                            values[unit][i][1] = fmaf(weights[i], value.y, values[unit][i][1]);
                        }
                    }
                }
            }
        }
    }

    static __device__ __forceinline__ void finish_item(const ExactAttentionParams& p, const Work& work, uint32_t dim,
                                                       uint32_t pairs, const float (&output)[UNITS][4][2],
                                                       const float* largest, const float* sum) {
        if (work.item.part != WHOLE) {
            float* part = p.partial + ((uint64_t)work.item.part * gridDim.y + blockIdx.y) * QUERIES * (dim + 2);
            if (threadIdx.x < work.queries) {
                part[threadIdx.x * (dim + 2)] = largest[threadIdx.x];
                part[threadIdx.x * (dim + 2) + 1] = sum[threadIdx.x];
            }
#pragma unroll
            for (int unit = 0; unit < UNITS; ++unit) {
                const uint32_t number = threadIdx.x + unit * THREADS, share = number / pairs, pair = number % pairs;
#pragma unroll
                for (uint32_t i = 0; i < 4; ++i) {
                    const uint32_t q = share * work.per + i;
                    if (q < work.queries && i < work.per) {
                        *reinterpret_cast<float2*>(part + q * (dim + 2) + 2 + pair * 2) =
                            make_float2(output[unit][i][0], output[unit][i][1]);
                    }
                }
            }
            return;
        }
#pragma unroll
        for (int unit = 0; unit < UNITS; ++unit) {
            const uint32_t number = threadIdx.x + unit * THREADS, share = number / pairs, pair = number % pairs;
#pragma unroll
            for (uint32_t i = 0; i < 4; ++i) {
                const uint32_t q = share * work.per + i;
                const bool valid = q < work.queries && i < work.per;
                float2 value = make_float2(0.0f, 0.0f);
                if (valid) {
                    value = make_float2(__fdiv_rn(output[unit][i][0], sum[q]), __fdiv_rn(output[unit][i][1], sum[q]));
                }
                write_output(p, valid, work.item.first_row + (valid ? q / work.heads : 0),
                             work.first_head + (valid ? q % work.heads : 0), pair, value);
            }
        }
    }
};

}  // namespace polylink::exact
