// The patches of images as rows of a matrix, ready for one product with the patch embedding's weight.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "vimrt/tensor.h"

namespace vimrt::cuda {

// Writes rows (batch, tokens, channels * patch_rows * patch_columns) as row_dtype, normalised, and what the product is
// to be added to: start (batch, tokens, width) in fp32, the bias or the class token, plus the position.
struct PatchRows {
    const void* pixels =
        nullptr;  // fp32 (batch, channels, height, width), normalised; or uint8 (batch, height, width, channels)
    DType pixels_dtype = DType::F32;
    float mean[3] = {};  // of uint8 pixels: (value / 255 - mean) / std
    float std[3] = {};
    int batch = 0, channels = 0, height = 0, width = 0;
    int patch_rows = 0, patch_columns = 0, stride = 0;
    int grid_columns = 0;
    int tokens = 0;  // of an image: patches and class tokens
    // Class tokens: `first` at index first_at (-1: none) and `last` at the end (null: none). Their rows are zero.
    int first_at = -1;
    const float* first = nullptr;
    const float* last = nullptr;
    const float* bias = nullptr;       // (d_model), or null
    const float* positions = nullptr;  // (tokens, d_model), or null
    int d_model = 0;
    void* rows = nullptr;
    DType row_dtype = DType::F32;
    float* start = nullptr;
};

void patch_rows(const PatchRows& a, cudaStream_t stream);

}  // namespace vimrt::cuda
