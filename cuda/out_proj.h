// out_proj and the residual's addition, as kernels in front of a scan take them in, and by themselves.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <span>

#include "device.h"
#include "storage.h"

namespace vimrt::cuda {

// sum = residual + y weight^T. Sizes are those of Vim's blocks: rows of `width` columns in the residual, of twice as
// many in y.
struct OutProj {
    const float* residual = nullptr;  // (batch, tokens, width)
    const void* y = nullptr;          // (batch, tokens, 2 width); null where the residual itself is the sum
    std::int64_t y_stride = 0;        // elements from row to row, a multiple of 8
    const void* weight = nullptr;     // (width, 2 width)
    float* sum = nullptr;             // (batch, tokens, width); in the residual's place only for add_out_proj()
};

// By themselves, for few rows. The blocks are set up and have their weights while the kernel in front still runs, and
// let those of the kernel behind be set up, which a library's product does not (docs/performance.md).
struct AddOutProj {
    OutProj out;
    DType dtype = DType::F16;  // of y and the weight, 16 bits
    int width = 0;
    std::int64_t rows = 0;  // of all images
    int block_rows = 0;     // of a block, one of add_out_proj_block_rows(): see add_out_proj_rows()
};

// Those for 384 and 768 columns; none for others.
std::span<const int> add_out_proj_block_rows(int width);
// How many serve a shape best; 0 where a library's product does, or such a kernel is not to be had.
int add_out_proj_rows(const AddOutProj& a, const DeviceProperties& device);
void add_out_proj(const AddOutProj& a, cudaStream_t stream);

}  // namespace vimrt::cuda
