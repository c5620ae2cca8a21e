// residual <- residual + hidden, normed <- RMSNorm or LayerNorm of it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "vimrt/tensor.h"

namespace vimrt::cuda {

// Matrices are (rows, columns), and dense but for `hidden`.
struct AddNorm {
    const float* hidden = nullptr;
    std::int64_t hidden_stride = 0;   // elements from row to row; where columns are read in fours, a multiple of four
    const float* residual = nullptr;  // may be null: there is none
    float* sum = nullptr;             // where residual + hidden goes; may be null, or the storage of either
    void* normed = nullptr;           // stored as normed_dtype
    const float* weight = nullptr;
    const float* bias = nullptr;  // may be null
    DType normed_dtype = DType::F32;
    std::int64_t rows = 0;
    int columns = 0;  // at most max_norm_columns(columns)
    float eps = 0;
    bool centred = false;  // LayerNorm rather than RMSNorm
};

// The widest row that a warp keeps in registers: lanes hold 4 neighbouring columns where that divides the width.
constexpr int max_norm_columns(std::int64_t columns) {
    return columns % 4 == 0 ? 4096 : 1024;
}

void add_norm(const AddNorm& a, cudaStream_t stream);

}  // namespace vimrt::cuda
