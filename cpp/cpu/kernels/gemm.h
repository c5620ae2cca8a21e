// Matrix products with packed weights: out = A B, with what a Vim block does before and after folded in.
//
// B is packed once, at load, into panels three registers wide (runtime/weights.h). A tile of 8 rows by one panel (4
// rows with AVX2) lives in 24 (12) accumulators: each step of the inner loop loads three registers of B and broadcasts
// one element of each row of A straight from where it lies. A is not packed, K is not blocked: a Vim block's K is at
// most a few thousand, so that 8 rows of A stay in the first-level cache while B streams from the second.
// docs/cpu-kernels.md compares this with OpenBLAS on the shapes of Vim.
#pragma once

#include "kernels/partition.h"
#include "kernels/simd.h"
#include "runtime/weights.h"

namespace vimrt::cpu::VIMRT_ISA {

constexpr int kPanelVectors = 3;
constexpr int kPanelWidth = kPanelVectors * kLanes;
#if defined(__AVX512F__)
constexpr int kTileRows = 8;
#else
constexpr int kTileRows = 4;
#endif

// Rows of A that share one pass over B where B exceeds the second-level cache.
constexpr std::int64_t kRowBlock = 64;
constexpr std::int64_t kCachedWeightBytes = 768 * 1024;

// out[m][n] = sum over k of A[m][k] B[k][n] + bias[n] + addend[m][n]
struct Epilogue {
    const float* bias = nullptr;    // padded to whole registers
    const float* addend = nullptr;  // may be `out` itself
    std::int64_t addend_stride = 0;
};

struct TileArguments {
    const float* a;
    std::int64_t a_stride;
    const float* panel;
    std::int64_t depth;
    Epilogue epilogue;  // at the tile's first row and column
    float* out;
    std::int64_t out_stride;
    Mask last;  // of the columns of the tile's last register
};

template <int kRows, int kVectors>
[[gnu::noinline]] void gemm_tile(const TileArguments& arguments) {
    const float* a = arguments.a;
    const float* b = arguments.panel;
    const std::int64_t a_stride = arguments.a_stride;
    Vec sums[kRows][kVectors];
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
#pragma GCC unroll 3
        for (int v = 0; v < kVectors; ++v) sums[m][v] = zero();
    }
    for (std::int64_t k = 0; k < arguments.depth; ++k, b += kVectors * kLanes) {
        Vec row[kVectors];
#pragma GCC unroll 3
        for (int v = 0; v < kVectors; ++v) row[v] = load(b + v * kLanes);
#pragma GCC unroll 8
        for (int m = 0; m < kRows; ++m) {
            const Vec element = set1(a[m * a_stride + k]);
#pragma GCC unroll 3
            for (int v = 0; v < kVectors; ++v) sums[m][v] = fma(element, row[v], sums[m][v]);
        }
    }

    const Epilogue& epilogue = arguments.epilogue;
#pragma GCC unroll 3
    for (int v = 0; v < kVectors; ++v) {
        const Mask mask = v == kVectors - 1 ? arguments.last : first_lanes(kLanes);
        const Vec bias = epilogue.bias != nullptr ? load(epilogue.bias + v * kLanes) : zero();
#pragma GCC unroll 8
        for (int m = 0; m < kRows; ++m) {
            Vec value = add(sums[m][v], bias);
            if (epilogue.addend != nullptr) {
                value = add(value, load(epilogue.addend + m * epilogue.addend_stride + v * kLanes, mask));
            }
            store(arguments.out + m * arguments.out_stride + v * kLanes, value, mask);
        }
    }
}

using TileFunction = void (*)(const TileArguments&);

// By registers of width - 1 and rows - 1.
constexpr TileFunction kTiles[kPanelVectors][kTileRows] = {
#if defined(__AVX512F__)
#define VIMRT_TILES(v)                                                                                        \
    {                                                                                                         \
        gemm_tile<1, v>, gemm_tile<2, v>, gemm_tile<3, v>, gemm_tile<4, v>, gemm_tile<5, v>, gemm_tile<6, v>, \
            gemm_tile<7, v>, gemm_tile<8, v>                                                                  \
    }
#else
#define VIMRT_TILES(v) \
    { gemm_tile<1, v>, gemm_tile<2, v>, gemm_tile<3, v>, gemm_tile<4, v> }
#endif
    VIMRT_TILES(1), VIMRT_TILES(2), VIMRT_TILES(3)
#undef VIMRT_TILES
};

VIMRT_INLINE std::int64_t panel_count(const PackedMatrix& b) {
    return ceil_div(b.columns, kPanelWidth);
}

// `rows` (up to any number) rows of A by panel `panel` of B. `epilogue` and `out` are at row 0 and column 0 of the
// whole.
static inline void gemm_panel(std::int64_t rows, const float* a, std::int64_t a_stride, const PackedMatrix& b,
                              std::int64_t panel, const Epilogue& epilogue, float* out, std::int64_t out_stride) {
    const std::int64_t column = panel * kPanelWidth;
    const std::int64_t width = min_of(b.columns - column, kPanelWidth);
    const int vectors = static_cast<int>(ceil_div(width, kLanes));
    TileArguments tile{a,
                       a_stride,
                       b.panels + column * b.depth,
                       b.depth,
                       epilogue,
                       out + column,
                       out_stride,
                       first_lanes(width - (vectors - 1) * kLanes)};
    if (tile.epilogue.bias != nullptr) tile.epilogue.bias += column;
    if (tile.epilogue.addend != nullptr) tile.epilogue.addend += column;

    // Tiles of equal height, within a row: 9 rows are 5 and 4 rather than 8 and 1.
    const std::int64_t tiles = ceil_div(rows, kTileRows);
    for (std::int64_t i = 0; i < tiles; ++i) {
        const Range part = part_of(rows, i, tiles);
        kTiles[vectors - 1][part.size() - 1](tile);
        tile.a += part.size() * a_stride;
        tile.out += part.size() * out_stride;
        if (tile.epilogue.addend != nullptr) tile.epilogue.addend += part.size() * epilogue.addend_stride;
    }
}

// How many rows to take at a time through all panels of B.
VIMRT_INLINE std::int64_t rows_per_pass(const PackedMatrix& b) {
    const auto bytes = static_cast<std::int64_t>(sizeof(float)) * b.depth * b.columns;
    return bytes <= kCachedWeightBytes ? kTileRows : kRowBlock;
}

// A (rows, depth) by panels [panels.begin, panels.end) of B.
static inline void gemm(std::int64_t rows, const float* a, std::int64_t a_stride, const PackedMatrix& b, Range panels,
                        Epilogue epilogue, float* out, std::int64_t out_stride) {
    const std::int64_t passes = ceil_div(rows, rows_per_pass(b));
    for (std::int64_t i = 0; i < passes; ++i) {
        const Range part = part_of(rows, i, passes);
        for (std::int64_t panel = panels.begin; panel < panels.end; ++panel) {
            gemm_panel(part.size(), a, a_stride, b, panel, epilogue, out, out_stride);
        }
        a += part.size() * a_stride;
        out += part.size() * out_stride;
        if (epilogue.addend != nullptr) epilogue.addend += part.size() * epilogue.addend_stride;
    }
}

}  // namespace vimrt::cpu::VIMRT_ISA
