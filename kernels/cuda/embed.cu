// Tokens to rows: a table of embeddings in any of the forms that weights are packed in, as a tied one is the output head's.
//
// A block per row; every value is f32 of the table's, times the model's scale (docs/numerics.md, rules 3 and 5).
#include "int8_forms.cuh"
#include "row_store.cuh"

namespace polylink {

constexpr uint32_t LAST_SAMPLE = 0x80000000u;  // in a token: the rest is the slot whose last sample it is

struct EmbedParams {
    const uint8_t* table;
    const uint32_t* tokens;       // [rows]
    const uint32_t* last_sample;  // [slots]
    float* output;                // [rows][width]
    const uint32_t* count;
    uint32_t width;
    uint32_t vocabulary;
    uint32_t inputs_padded;  // bf16 tiles: inputs of the padded weight
    float scale;
};

// The token of a row; one that cannot be (the sample of a row that failed) is taken as the last.
__device__ __forceinline__ uint32_t token_of(const EmbedParams& p, uint32_t row) {
    uint32_t token = p.tokens[row];
    if (token & LAST_SAMPLE) token = p.last_sample[token & ~LAST_SAMPLE];
    return token < p.vocabulary ? token : p.vocabulary - 1;
}

// Float tables of the exact products: [strip of 32 tokens][input][32].
template <class T>
__device__ __forceinline__ void embed_strips(const EmbedParams& p) {
    pdl_launch();
    pdl_wait();
    const uint32_t row = blockIdx.x;
    if (row >= *p.count) return;
    const uint32_t token = token_of(p, row);
    const T* from = reinterpret_cast<const T*>(p.table) + (uint64_t)(token / 32) * p.inputs_padded * 32 + token % 32;
    for (uint32_t col = threadIdx.x; col < p.width; col += blockDim.x) {
        float value;
        if constexpr (sizeof(T) == 2) {
            value = from_bf16(from[col * 32]);
        } else {
            value = from[col * 32];
        }
        p.output[(uint64_t)row * p.width + col] = __fmul_rn(value, p.scale);
    }
}

// Tables of integers: records of 8 tokens × 256 inputs. A thread takes of a block of 32 what a lane of a product would: four
// inputs from 4 c on and four from 16 + 4 c on. Products keep integers multiplied by 2^shift.
template <class Form, int shift>
__device__ __forceinline__ void embed_records(const EmbedParams& p) {
    using exact::Fold;
    pdl_launch();
    pdl_wait();
    const uint32_t row = blockIdx.x;
    if (row >= *p.count) return;
    const uint32_t token = token_of(p, row), of_strip = token % 8, groups = p.inputs_padded / 256;
    const uint8_t* strip = p.table + (uint64_t)(token / 8) * groups * Form::RECORD;
    float* to = p.output + (uint64_t)row * p.width;
    auto own = [&](auto pair) { return of_strip % 2 == 0 ? pair.x : pair.y; };
    for (uint32_t piece = threadIdx.x; piece < p.width / 8; piece += blockDim.x) {
        const uint32_t number = piece / 4, c = piece % 4;
        const uint8_t* record = strip + (uint64_t)(number / 8) * Form::RECORD;
        const int block = (int)(number % 8), outputs = (int)(of_strip / 2);
        uint32_t words[2];
        Form::quants(record, block, (int)(of_strip * 4 + c), words[0], words[1]);
        const float scale = own(Form::scales(record, block, outputs));
        for (int half = 0; half < 2; ++half) {
            float values[4];
            for (int i = 0; i < 4; ++i) {
                const int quant = (int)(int8_t)(words[half] >> (8 * i)) >> shift;
                if constexpr (Form::FOLD == Fold::Halves) {
                    // The product of the integers is one: no −0 comes of it.
                    values[i] = __fmul_rn(scale, (float)((int)own(Form::own(record, block, half, outputs)) * quant));
                } else if constexpr (Form::FOLD == Fold::Minimum) {
                    values[i] = __fadd_rn(__fmul_rn(scale, (float)quant), own(Form::minima(record, block, outputs)));
                } else {
                    values[i] = __fmul_rn((float)quant, scale);
                }
            }
            const float4 four = make_float4(values[0], values[1], values[2], values[3]);
            *reinterpret_cast<float4*>(to + number * 32 + half * 16 + c * 4) = times(four, p.scale);
        }
    }
}

}  // namespace polylink

using namespace polylink;

// A block per row.
extern "C" __global__ void __launch_bounds__(256) embed_f32(const __grid_constant__ EmbedParams p) {
    pdl_launch();
    pdl_wait();
    const uint32_t row = blockIdx.x, width = p.width;
    if (row >= *p.count) return;
    const float* from = reinterpret_cast<const float*>(p.table) + (uint64_t)token_of(p, row) * width;
    float* to = p.output + (uint64_t)row * width;
    const bool fours = in_fours(width);
    for (uint32_t col = threadIdx.x * 4; col < width; col += blockDim.x * 4) {
        store_floats(to, col, width, fours, times(load_four(from, col, width, fours), p.scale));
    }
}

// Of bf16 tiles (weight_tile_offset): eight values per thread.
extern "C" __global__ void __launch_bounds__(256) embed_tiles(const __grid_constant__ EmbedParams p) {
    pdl_launch();
    pdl_wait();
    const uint32_t row = blockIdx.x, width = p.width;
    if (row >= *p.count) return;
    const uint32_t token = token_of(p, row);
    float* to = p.output + (uint64_t)row * width;
    const bool fours = in_fours(width);
    for (uint32_t col = threadIdx.x * 8; col < width; col += blockDim.x * 8) {
        const uint4 words = *reinterpret_cast<const uint4*>(p.table + weight_tile_offset(token, col, p.inputs_padded));
        auto low = [](uint32_t word) { return from_bits(word << 16); };
        auto high = [](uint32_t word) { return from_bits(word & 0xffff0000u); };
        const float4 first = make_float4(low(words.x), high(words.x), low(words.y), high(words.y));
        const float4 second = make_float4(low(words.z), high(words.z), low(words.w), high(words.w));
        store_floats(to, col, width, fours, times(first, p.scale));
        store_floats(to, col + 4, width, fours, times(second, p.scale));
    }
}

extern "C" __global__ void __launch_bounds__(256) embed_strips_f32(const __grid_constant__ EmbedParams p) {
    embed_strips<float>(p);
}

extern "C" __global__ void __launch_bounds__(256) embed_strips_bf16(const __grid_constant__ EmbedParams p) {
    embed_strips<uint16_t>(p);
}

#define POLYLINK_EMBED(name, form, shift)                                                                \
    extern "C" __global__ void __launch_bounds__(256) name(const __grid_constant__ EmbedParams p) {      \
        embed_records<exact::form, shift>(p);                                                            \
    }

POLYLINK_EMBED(embed_q8_0, Q8_0, 0)
POLYLINK_EMBED(embed_q4_0, Q4_0, 4)
POLYLINK_EMBED(embed_q4_k, Q4_K, 0)
POLYLINK_EMBED(embed_q5_k, Q5_K, 0)
POLYLINK_EMBED(embed_q6_k, Q6_K, 2)
