// out_proj and the residual's addition, as kernels in front of a scan take them in.
#pragma once

#include <cstdint>

namespace vimrt::cuda {

// sum = residual + y weight^T. Sizes are those of Vim's blocks: rows of `width` columns in the residual, of twice as
// many in y.
struct OutProj {
    const float* residual = nullptr;  // (batch, tokens, width)
    const void* y = nullptr;          // (batch, tokens, 2 width); null where the residual itself is the sum
    std::int64_t y_stride = 0;        // elements from row to row, a multiple of 8
    const void* weight = nullptr;     // (width, 2 width)
    float* sum = nullptr;             // (batch, tokens, width), not in the residual's place; unused without y
};

}  // namespace vimrt::cuda
