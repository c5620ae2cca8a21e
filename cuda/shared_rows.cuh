// Rows in shared memory: how far apart, and in what order their pieces, such that lanes do not meet in a bank.
#pragma once

#include <cstdint>

#include "scan_octet.cuh"

namespace vimrt::cuda {

// Rows of shared memory whose bytes are an odd number of pieces: eight rows' lie in different banks.
constexpr int odd_row(int bytes) {
    return bytes + piece_bytes;
}
// Rows, of a multiple of 32 bytes, such that two floats of each of four lanes of four rows lie in different banks.
constexpr int row_of_pairs(int bytes) {
    return bytes + (bytes % 64 == 0 ? 32 : 0);
}
// Where a piece lies in rows that are a multiple of eight pieces, such that these lie in different banks: the same
// piece of eight rows, and four neighbouring ones of two rows.
__device__ constexpr int swizzled(int row, int piece) {
    return piece ^ (row % 2 * 4 + row % 8 / 2);
}

// Begins to copy rows of a weight, `Depth` columns of 16 bits, dense, to swizzled ones, by the first `Fetchers`
// threads. A thread's rows are as many apart that its places in them are few, so that a copy takes one instruction.
template <int Fetchers, int Rows, int Depth>
__device__ void fetch_rows(unsigned to, const void* weight, int first_row, int thread) {
    constexpr int row_bytes = Depth * 2;
    constexpr int pieces = row_bytes / piece_bytes;
    constexpr int step = Fetchers / pieces;  // rows
    constexpr int places = 8 / step;
    static_assert(Fetchers % pieces == 0 && 8 % step == 0 && Rows % step == 0);
    if (thread >= Fetchers) return;
    const int row = thread / pieces, piece = thread % pieces;
    const char* from =
        static_cast<const char*>(weight) + static_cast<std::int64_t>(first_row + row) * row_bytes + piece * piece_bytes;
    unsigned place[places];
#pragma unroll
    for (int i = 0; i < places; ++i) place[i] = to + row * row_bytes + swizzled(row + i * step, piece) * piece_bytes;
#pragma unroll
    for (int k = 0; k < Rows / step; ++k)
        copy_async(place[k % places] + k * step * row_bytes, from + k * step * row_bytes);
}

}  // namespace vimrt::cuda
