// Products of fp32 operands on tensor cores of 16-bit types: an operand is the sum of two numbers of the type, its
// value rounded and what that leaves, and the three of the four products that matter are one of three times the depth,
// [high, low, high] with [high, high, low].
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "vimrt/tensor.h"

namespace vimrt::cuda {

// out (rows, 3, columns) = high, low and high again of in (rows, columns), whose rows are in_stride elements apart.
void split_in_parts(const void* in, std::int64_t in_stride, DType in_dtype, void* out, DType out_dtype,
                    std::int64_t rows, std::int64_t columns, cudaStream_t stream);

}  // namespace vimrt::cuda
