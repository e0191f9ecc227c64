// Where keys and values lie: one layout for the exact attention and for that of the tensor cores.
//
// Of bf16 the cache is [block][layer][part][head][token][dim] of 16-bit values; a block holds 32 positions of a sequence, part 0 are
// the keys and part 1 the values, heads are those held by this device. So what a (block, layer, part, head) holds is one
// stretch of 32 × head_dim values, plain: token by token, and its values in order. Position p of a sequence is token p % 32 of
// block table[p / 32]. What was never written may hold anything, NaN too.
//
// Of f32 it is the same in 32-bit values. Of numbers of a byte, i8 or e4m3, a (block, layer, part, head) is [32 tokens][head_dim]
// of them, then [32] f32 scales: kv_byte_start. The tensor cores' attention has e4m3 in pairs: of each 16 values of a row number
// j lies beside number j + 8 (kv_paired), so that the even and the odd bytes of a word are two operands of a product.
#pragma once

#include <cstdint>

namespace polylink {

constexpr uint32_t KV_BLOCK_TOKENS = 32;

struct KvShape {
    uint32_t layers;
    uint32_t heads;
    uint32_t head_dim;
};

// First value of the (block, layer, part, head), counted in values of the cache.
__host__ __device__ __forceinline__ uint64_t kv_start(const KvShape& shape, uint32_t block, uint32_t layer, uint32_t part,
                                                      uint32_t head) {
    return ((((uint64_t)block * shape.layers + layer) * 2 + part) * shape.heads + head) * KV_BLOCK_TOKENS * shape.head_dim;
}

// Value (token of the block, dim) of it.
__host__ __device__ __forceinline__ uint64_t kv_value(const KvShape& shape, uint32_t block, uint32_t layer, uint32_t part,
                                                      uint32_t head, uint32_t token, uint32_t dim) {
    return kv_start(shape, block, layer, part, head) + (uint64_t)token * shape.head_dim + dim;
}

// Bytes of what a (block, layer, part, head) of numbers of a byte holds: the numbers, then the tokens' scales.
__host__ __device__ __forceinline__ uint64_t kv_byte_part(const KvShape& shape) {
    return (uint64_t)KV_BLOCK_TOKENS * (shape.head_dim + 4);
}

// First byte of the (block, layer, part, head) in a cache of numbers of a byte. Number (token, dim) lies at + token × head_dim +
// dim, the token's scale at + 32 × head_dim + 4 × token.
__host__ __device__ __forceinline__ uint64_t kv_byte_start(const KvShape& shape, uint32_t block, uint32_t layer,
                                                           uint32_t part, uint32_t head) {
    return ((((uint64_t)block * shape.layers + layer) * 2 + part) * shape.heads + head) * kv_byte_part(shape);
}

// Which value of a row lies at a place of it, where values lie in pairs.
__host__ __device__ __forceinline__ uint32_t kv_paired(uint32_t place) { return place / 16 * 16 + place % 2 * 8 + place % 16 / 2; }

}  // namespace polylink
