// Rearranges a packed weight once, when a program is built: gates over ups become 8 gates, their 8 ups, and so on, so that a
// product finds a gate beside its up. Groups of 8 outputs keep their order and their swizzle, and move as a whole.
#include "common.cuh"

using namespace polylink;

struct InterleaveParams {
    const uint4* from;  // [outputs / 64][k_tiles] tiles of 8 groups, gates over ups
    uint4* to;          // the same, interleaved; padded with zeros
    uint32_t half;      // gates: a multiple of 8
    uint32_t k_tiles;   // of e4m3: tiles of 128 inputs
    uint32_t pieces;    // of 16 bytes in a group: 64; of e4m3 66
};

// Grid: groups of 8 outputs of the result, tiles along the inputs. Blocks of 64 threads.
extern "C" __global__ void interleave_gates(const __grid_constant__ InterleaveParams p) {
    pdl_wait();
    const uint32_t group = blockIdx.x, k_tile = blockIdx.y, column = group / 2 * 8, output = (group % 2) * p.half + column;
    const uint64_t to = (((uint64_t)(group / 8) * p.k_tiles + k_tile) * 8 + group % 8) * p.pieces;
    const uint64_t from = (((uint64_t)(output / 64) * p.k_tiles + k_tile) * 8 + output % 64 / 8) * p.pieces;
    for (uint32_t i = threadIdx.x; i < p.pieces; i += blockDim.x) {
        p.to[to + i] = column >= p.half ? make_uint4(0, 0, 0, 0) : p.from[from + i];
    }
}
