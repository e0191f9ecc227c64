// Exact products in f32 (docs/numerics.md, rule 2): per output one chain of fused multiply-adds per K range, inputs ascending;
// the ranges' sums added in order; out = residual + (total + bias). Weights f32 or bf16.
//
// Weights lie in strips of 32 outputs: [strip][input][32], outputs padded with zeros to a multiple of 64 and inputs to one of 32
// (what is padded is never used). Both geometries hold stages of inputs in shared memory, filled in the background; weights are
// asked for before the kernels of the step before are waited for.
#include "exact_tools.cuh"

namespace polylink::exact {

struct FloatParams {
    const uint8_t* weights;   // [outputs / 32][padded][32]
    const float* input;       // [rows][in_pitch]
    const float* bias;        // [outputs], or null
    const float* residual;    // as out, or null; may be out
    float* out;               // [rows][out_pitch], this matrix from out's first column on
    const StepCounts* counts; // one per group (grid.z)
    uint64_t matrix_bytes;    // of one matrix of a group
    uint32_t rows;            // of the launch at most
    uint32_t wanted;          // not 0: the wanted rows
    uint32_t in_pitch;
    uint32_t outputs;
    uint32_t inputs;
    uint32_t range;           // inputs of a K range
    uint32_t out_pitch;
};

template <class T>
__device__ __forceinline__ float weight_of(T value) {
    if constexpr (sizeof(T) == 2) {
        return from_bf16(value);
    } else {
        return value;
    }
}

__device__ __forceinline__ void finish(const FloatParams& p, float sum, uint32_t row, uint32_t column) {
    const uint64_t at = (uint64_t)row * p.out_pitch + column;
    if (p.bias != nullptr) {
        sum = __fadd_rn(sum, p.bias[column]);
    }
    if (p.residual != nullptr) {
        sum = __fadd_rn(p.residual[at], sum);
    }
    p.out[at] = sum;
}

// Rows first … first + count − 1 of the input, inputs from … from + LENGTH − 1, to [row][pitch] in shared memory. Threads share
// rows and inputs; what is not there stays as it is.
template <int LENGTH, int THREADS>
__device__ __forceinline__ void copy_inputs(const FloatParams& p, uint32_t to, uint32_t pitch, uint32_t first, uint32_t count,
                                            uint32_t from) {
    const bool wide = p.in_pitch % 4 == 0;
    if (wide) {
        for (uint32_t i = threadIdx.x; i < count * (LENGTH / 4); i += THREADS) {
            uint32_t row = i / (LENGTH / 4), k = i % (LENGTH / 4) * 4;
            if (from + k + 4 <= p.in_pitch) {
                copy_16(to + (row * pitch + k) * 4, p.input + (uint64_t)(first + row) * p.in_pitch + from + k);
            }
        }
    } else {
        for (uint32_t i = threadIdx.x; i < count * LENGTH; i += THREADS) {
            uint32_t row = i / LENGTH, k = i % LENGTH;
            if (from + k < p.inputs) {
                copy_4(to + (row * pitch + k) * 4, p.input + (uint64_t)(first + row) * p.in_pitch + from + k);
            }
        }
    }
}

// Few rows: a warp computes 32 outputs, one per lane, for up to ROWS rows.
template <class T, int ROWS>
struct FewRows {
    static constexpr int DEPTH = 64, STAGES = 6;
    static constexpr int WEIGHT_BYTES = DEPTH * 32 * sizeof(T);
    static constexpr int STAGE_BYTES = WEIGHT_BYTES + ROWS * DEPTH * 4;

    static __device__ __forceinline__ void copy_weights(const uint8_t* weights, uint32_t to, uint32_t padded, uint32_t stage) {
        const uint8_t* strip = weights + (uint64_t)blockIdx.x * padded * 32 * sizeof(T);
        const uint64_t from = (uint64_t)stage * WEIGHT_BYTES, all = (uint64_t)padded * 32 * sizeof(T);
#pragma unroll 8
        for (uint32_t i = threadIdx.x * 16; i < WEIGHT_BYTES; i += 32 * 16) {
            if (from + i < all) {
                copy_16(to + i, strip + from + i);
            }
        }
    }

    static __device__ __forceinline__ void run(const FloatParams& p, uint8_t* shared) {
        pdl_launch();
        const uint32_t base = shared_address(shared), padded = (p.inputs + 31) / 32 * 32;
        const uint32_t stages = (p.inputs + DEPTH - 1) / DEPTH, within = blockIdx.y * ROWS;
        // Which matrix of several it is, an earlier kernel says.
        const bool several = gridDim.z > 1;
        for (uint32_t stage = 0; !several && stage < STAGES - 1 && stage < stages; ++stage) {
            copy_weights(p.weights, base + stage * STAGE_BYTES, padded, stage);
        }
        pdl_wait();
        const Share share = share_of(p.counts, p.rows, p.wanted, p.matrix_bytes);
        const uint8_t* all_weights = p.weights + share.weights;
        if (within >= share.rows) {
            copies_commit();
            copies_wait<0>();
            return;
        }
        for (uint32_t stage = 0; several && stage < STAGES - 1 && stage < stages; ++stage) {
            copy_weights(all_weights, base + stage * STAGE_BYTES, padded, stage);
        }
        const uint32_t first = share.first_row + within;
        const uint32_t count = share.rows - within < ROWS ? share.rows - within : ROWS;
        for (uint32_t stage = 0; stage < STAGES - 1; ++stage) {
            if (stage < stages) {
                copy_inputs<DEPTH, 32>(p, base + stage * STAGE_BYTES + WEIGHT_BYTES, DEPTH, first, count, stage * DEPTH);
            }
            copies_commit();
        }
        float sums[ROWS] = {}, totals[ROWS] = {};
        uint32_t end = p.range, slot = 0, next = STAGES - 1;
        bool started = false;
        auto take = [&]() {
#pragma unroll
            for (int row = 0; row < ROWS; ++row) {
                totals[row] = started ? __fadd_rn(totals[row], sums[row]) : sums[row];
                sums[row] = 0.0f;
            }
            started = true;
        };
        for (uint32_t stage = 0; stage < stages; ++stage) {
            copies_wait<STAGES - 2>();
            __syncwarp();
            if (stage + STAGES - 1 < stages) {
                const uint32_t to = base + next * STAGE_BYTES, number = stage + STAGES - 1;
                copy_weights(all_weights, to, padded, number);
                copy_inputs<DEPTH, 32>(p, to + WEIGHT_BYTES, DEPTH, first, count, number * DEPTH);
            }
            copies_commit();
            const T* weights = reinterpret_cast<const T*>(shared + slot * STAGE_BYTES) + threadIdx.x;
            const float* x = reinterpret_cast<const float*>(shared + slot * STAGE_BYTES + WEIGHT_BYTES);
            const uint32_t begin = stage * DEPTH, length = p.inputs - begin < DEPTH ? p.inputs - begin : DEPTH;
            for (uint32_t k = 0; k < length;) {
                if (begin + k == end) {
                    take();
                    end += p.range;
                }
                const uint32_t stop = end - begin < length ? end - begin : length;
                for (; k < stop && k % 4 != 0; ++k) {
                    const float w = weight_of(weights[k * 32]);
#pragma unroll
                    for (int row = 0; row < ROWS; ++row) {
                        sums[row] = fmaf(x[row * DEPTH + k], w, sums[row]);
                    }
                }
#pragma unroll 4
                for (; k + 4 <= stop; k += 4) {
                    const float w[4] = {weight_of(weights[k * 32]), weight_of(weights[k * 32 + 32]),
                                        weight_of(weights[k * 32 + 64]), weight_of(weights[k * 32 + 96])};
#pragma unroll
                    for (int row = 0; row < ROWS; ++row) {
                        const float4 four = *reinterpret_cast<const float4*>(x + row * DEPTH + k);
                        sums[row] = fmaf(four.x, w[0], sums[row]);
                        sums[row] = fmaf(four.y, w[1], sums[row]);
                        sums[row] = fmaf(four.z, w[2], sums[row]);
                        sums[row] = fmaf(four.w, w[3], sums[row]);
                    }
                }
                for (; k < stop; ++k) {
                    const float w = weight_of(weights[k * 32]);
#pragma unroll
                    for (int row = 0; row < ROWS; ++row) {
                        sums[row] = fmaf(x[row * DEPTH + k], w, sums[row]);
                    }
                }
            }
            slot = slot + 1 == STAGES ? 0 : slot + 1;
            next = next + 1 == STAGES ? 0 : next + 1;
        }
        take();
        const uint32_t column = blockIdx.x * 32 + threadIdx.x;
#pragma unroll
        for (int row = 0; row < ROWS; ++row) {
            if (row < (int)count && column < p.outputs) {
                finish(p, totals[row], first + row, column);
            }
        }
    }
};

// Many rows: 256 threads compute 16 × R rows × 64 outputs, R rows × 4 outputs each.
template <class T, int R>
struct ManyRows {
    static constexpr int DEPTH = 32, STAGES = 3, BM = 16 * R, PITCH = DEPTH + 4;
    static constexpr int WEIGHT_BYTES = 2 * DEPTH * 32 * sizeof(T);
    static constexpr int STAGE_BYTES = WEIGHT_BYTES + BM * PITCH * 4;

    static __device__ __forceinline__ void copy_weights(const uint8_t* weights, uint32_t to, uint32_t padded, uint32_t stage) {
        constexpr uint32_t HALF = WEIGHT_BYTES / 2;
#pragma unroll
        for (uint32_t i = threadIdx.x * 16; i < WEIGHT_BYTES; i += 256 * 16) {
            const uint64_t strip = blockIdx.x * 2 + i / HALF;
            copy_16(to + i, weights + (strip * padded + stage * DEPTH) * 32 * sizeof(T) + i % HALF);
        }
    }

    static __device__ __forceinline__ void step(float (&sums)[R][4], const T* weights, const float* x, uint32_t k) {
        float w[4];
        if constexpr (sizeof(T) == 2) {
            const ushort4 four = *reinterpret_cast<const ushort4*>(weights + k * 32);
            w[0] = from_bf16(four.x), w[1] = from_bf16(four.y), w[2] = from_bf16(four.z), w[3] = from_bf16(four.w);
        } else {
            const float4 four = *reinterpret_cast<const float4*>(weights + k * 32);
            w[0] = four.x, w[1] = four.y, w[2] = four.z, w[3] = four.w;
        }
#pragma unroll
        for (int row = 0; row < R; ++row) {
            const float value = x[row * PITCH + k];
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                sums[row][n] = fmaf(value, w[n], sums[row][n]);
            }
        }
    }

    static __device__ __forceinline__ void run(const FloatParams& p, uint8_t* shared) {
        pdl_launch();
        const uint32_t base = shared_address(shared), padded = (p.inputs + 31) / 32 * 32;
        const uint32_t stages = (p.inputs + DEPTH - 1) / DEPTH, within = blockIdx.y * BM;
        // Which matrix of several it is, an earlier kernel says.
        const bool several = gridDim.z > 1;
        for (uint32_t stage = 0; !several && stage < STAGES - 1 && stage < stages; ++stage) {
            copy_weights(p.weights, base + stage * STAGE_BYTES, padded, stage);
        }
        pdl_wait();
        const Share share = share_of(p.counts, p.rows, p.wanted, p.matrix_bytes);
        const uint8_t* all_weights = p.weights + share.weights;
        if (within >= share.rows) {
            copies_commit();
            copies_wait<0>();
            return;
        }
        for (uint32_t stage = 0; several && stage < STAGES - 1 && stage < stages; ++stage) {
            copy_weights(all_weights, base + stage * STAGE_BYTES, padded, stage);
        }
        const uint32_t first = share.first_row + within;
        const uint32_t count = share.rows - within < BM ? share.rows - within : BM;
        for (uint32_t stage = 0; stage < STAGES - 1; ++stage) {
            if (stage < stages) {
                copy_inputs<DEPTH, 256>(p, base + stage * STAGE_BYTES + WEIGHT_BYTES, PITCH, first, count, stage * DEPTH);
            }
            copies_commit();
        }
        const uint32_t tx = threadIdx.x % 16, ty = threadIdx.x / 16;
        float sums[R][4] = {}, totals[R][4] = {};
        uint32_t end = p.range, slot = 0, next = STAGES - 1;
        bool started = false;
        auto take = [&]() {
#pragma unroll
            for (int row = 0; row < R; ++row) {
#pragma unroll
                for (int n = 0; n < 4; ++n) {
                    totals[row][n] = started ? __fadd_rn(totals[row][n], sums[row][n]) : sums[row][n];
                    sums[row][n] = 0.0f;
                }
            }
            started = true;
        };
        for (uint32_t stage = 0; stage < stages; ++stage) {
            copies_wait<STAGES - 2>();
            __syncthreads();
            if (stage + STAGES - 1 < stages) {
                const uint32_t to = base + next * STAGE_BYTES, number = stage + STAGES - 1;
                copy_weights(all_weights, to, padded, number);
                copy_inputs<DEPTH, 256>(p, to + WEIGHT_BYTES, PITCH, first, count, number * DEPTH);
            }
            copies_commit();
            const T* weights =
                reinterpret_cast<const T*>(shared + slot * STAGE_BYTES) + (tx / 8) * (DEPTH * 32) + (tx % 8) * 4;
            const float* x = reinterpret_cast<const float*>(shared + slot * STAGE_BYTES + WEIGHT_BYTES) + ty * R * PITCH;
            const uint32_t begin = stage * DEPTH, length = p.inputs - begin < DEPTH ? p.inputs - begin : DEPTH;
            if (length == DEPTH && end - begin >= DEPTH && end != begin) {
#pragma unroll 8
                for (uint32_t k = 0; k < DEPTH; ++k) {
                    step(sums, weights, x, k);
                }
            } else {
#pragma unroll 1
                for (uint32_t k = 0; k < length; ++k) {
                    if (begin + k == end) {
                        take();
                        end += p.range;
                    }
                    step(sums, weights, x, k);
                }
            }
            slot = slot + 1 == STAGES ? 0 : slot + 1;
            next = next + 1 == STAGES ? 0 : next + 1;
        }
        take();
#pragma unroll
        for (int row = 0; row < R; ++row) {
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                const uint32_t in_tile = ty * R + row, column = blockIdx.x * 64 + tx * 4 + n;
                if (in_tile < count && column < p.outputs) {
                    finish(p, totals[row][n], first + in_tile, column);
                }
            }
        }
    }
};

}  // namespace polylink::exact

#define POLYLINK_FLOAT_KERNEL(name, Tile, THREADS)                                                                 \
    extern "C" __global__ void __launch_bounds__(THREADS) name(const __grid_constant__ polylink::exact::FloatParams p) { \
        POLYLINK_DYNAMIC_SHARED(uint8_t, shared);\
        polylink::exact::Tile::run(p, shared);                                                                     \
    }

#define POLYLINK_COMMA ,
POLYLINK_FLOAT_KERNEL(f32_rows_1, FewRows<float POLYLINK_COMMA 1>, 32)
POLYLINK_FLOAT_KERNEL(f32_rows_8, FewRows<float POLYLINK_COMMA 8>, 32)
POLYLINK_FLOAT_KERNEL(f32_rows_64, ManyRows<float POLYLINK_COMMA 4>, 256)
POLYLINK_FLOAT_KERNEL(f32_rows_128, ManyRows<float POLYLINK_COMMA 8>, 256)
POLYLINK_FLOAT_KERNEL(bf16_rows_1, FewRows<uint16_t POLYLINK_COMMA 1>, 32)
POLYLINK_FLOAT_KERNEL(bf16_rows_8, FewRows<uint16_t POLYLINK_COMMA 8>, 32)
POLYLINK_FLOAT_KERNEL(bf16_rows_64, ManyRows<uint16_t POLYLINK_COMMA 4>, 256)
POLYLINK_FLOAT_KERNEL(bf16_rows_128, ManyRows<uint16_t POLYLINK_COMMA 8>, 256)
