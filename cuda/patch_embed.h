// The patches of images as rows of a matrix, ready for one product with the patch embedding's weight; or, where patches
// are Vim's and tokens are many, that product in the same kernel, so that no row is ever stored.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "device.h"
#include "vimrt/tensor.h"

namespace vimrt::cuda {

// Images, and what the products of their patches with the weight are added to.
struct Patches {
    const void* pixels =
        nullptr;  // fp32 (batch, channels, height, width), normalised; or uint8 (batch, height, width, channels)
    DType pixels_dtype = DType::F32;
    float mean[3] = {};  // of uint8 pixels: (value / 255 - mean) / std
    float std[3] = {};
    int batch = 0, channels = 0, height = 0, width = 0;
    int patch_rows = 0, patch_columns = 0, stride = 0;
    int grid_columns = 0;
    int tokens = 0;  // of an image: patches and class tokens
    // Class tokens: `first` at index first_at (-1: none) and `last` at the end (null: none). Their products are zero.
    int first_at = -1;
    const float* first = nullptr;
    const float* last = nullptr;
    const float* bias = nullptr;       // (d_model), or null
    const float* positions = nullptr;  // (tokens, d_model), or null
    int d_model = 0;
};

// Writes rows (batch, tokens, channels * patch_rows * patch_columns) as row_dtype, normalised, and what the product is
// to be added to: start (batch, tokens, d_model) in fp32, the bias or the class token, plus the position.
struct PatchRows : Patches {
    void* rows = nullptr;
    DType row_dtype = DType::F32;
    float* start = nullptr;
};
void patch_rows(const PatchRows& a, cudaStream_t stream);

// Writes out (batch, tokens, d_model) in fp32: products with the weight, and what they are added to. Pixels are rounded
// to `dtype`, sums are of fp32.
struct PatchProduct : Patches {
    const void* weight = nullptr;  // (d_model, channels * patch_rows * patch_columns), by patch_product_place()
    DType dtype = DType::F16;
    float* out = nullptr;
};
// Where element (row, column) of PatchProduct::weight lies, of rows of `depth` elements.
std::int64_t patch_product_place(std::int64_t row, std::int64_t column, std::int64_t depth);
// What the kernel was made for: fp32 pixels, patches of 16x16, widths of whole 192, 16-bit products, compute capability
// 9.0.
bool patch_product_takes(const PatchProduct& a, const DeviceProperties& device);
void patch_product(const PatchProduct& a, cudaStream_t stream);

}  // namespace vimrt::cuda
