// Tables that depend on the grid of patches: positions and rotary angles. Made once per program.
#pragma once

#include <cstdint>

#include "graph.h"
#include "lowering.h"

namespace vimrt::cpu {

// The table (T0, D) of an add_position node for a grid of rows x columns patches: (T, D). Where the grid is not the
// trained one the patches' entries are resampled bicubically as PyTorch's interpolate does it (a = -0.75, align_corners
// false, no antialiasing, taps beyond the edge take the edge's value); class tokens keep theirs.
const float* position_table(Lowering& lowering, const Node& node, std::int64_t grid_rows, std::int64_t grid_columns);

// A rope node's tables for a grid of rows x columns patches: cosines (rows * columns, D), then sines. Where the grid is
// not that of the file's tables they are computed: the first half of the channels turns with the row, the second with
// the column, pair k by position * base_grid / grid * 10000^(-2k / (D / 2)).
struct RopeTables {
    const float* cos = nullptr;
    const float* sin = nullptr;
};
RopeTables rope_tables(Lowering& lowering, const Node& node, std::int64_t grid_rows, std::int64_t grid_columns);

}  // namespace vimrt::cpu
