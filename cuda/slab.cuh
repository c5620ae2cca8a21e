// Products on tensor cores of operands in shared memory, 64 of the depth at a time.
#pragma once

#include "ptx.cuh"

namespace vimrt::cuda {

constexpr int slab = 64;
constexpr int slab_row_bytes = 2 * slab;
constexpr int slab_pieces = slab_row_bytes / 16;

// Where 16 bytes of a row lie: permuted, so that eight rows' lie in different banks.
__device__ inline int place_in_slab(int row, int piece) {
    return row * slab_row_bytes + ((piece ^ (row % 8)) * 16);
}

// sum += left right^T, of 16 rows from `left` and 8 Blocks rows from `right` on, whose places are those of rows that
// are multiples of 8: lane g = lane / 4, q = lane % 4 has, of each block of 8 columns, the columns 2 q and 2 q + 1 of
// rows g and g + 8.
template <typename T, int Blocks>
__device__ void multiply_slab(float (&sum)[Blocks][4], unsigned left, unsigned right, int lane) {
    // Lanes point to rows: of the left side's 16 rows, then the same 8 columns on; of the right side's 16 rows, 8 and
    // 8, each of both halves of the depth.
    const unsigned left_row = left + lane % 16 * slab_row_bytes;
    const unsigned right_row = right + (lane / 16 * 8 + lane % 8) * slab_row_bytes;
    const int left_piece = (lane / 16 ^ lane % 8) * 16;
    const int right_piece = (lane / 8 % 2 ^ lane % 8) * 16;
#pragma unroll
    for (int k = 0; k < slab / 16; ++k) {
        unsigned rows[4];
        load_matrices(rows, left_row + (left_piece ^ k * 32));
#pragma unroll
        for (int block = 0; block < Blocks; block += 2) {
            unsigned columns[4];
            load_matrices(columns, right_row + (right_piece ^ k * 32) + block * 8 * slab_row_bytes);
            multiply_add<T>(sum[block], rows, {columns[0], columns[1]});
            multiply_add<T>(sum[block + 1], rows, {columns[2], columns[3]});
        }
    }
}

}  // namespace vimrt::cuda
