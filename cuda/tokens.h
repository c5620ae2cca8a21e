// Operators on whole tokens: insert_tokens, add_position, rope, scale, select_tokens, pool and gated_merge on their
// own.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "vimrt/tensor.h"

namespace vimrt::cuda {

// out (batch, tokens, columns) from in (batch, tokens - inserted, columns): `first` is inserted at index first_at and
// `second`, unless it is null, at the end. All fp32.
void insert_tokens(const float* in, const float* first, std::int64_t first_at, const float* second, float* out,
                   std::int64_t batch, std::int64_t tokens, std::int64_t columns, cudaStream_t stream);

// out = in + table for each of the batch; in may be out.
void add_position(const float* in, const float* table, float* out, std::int64_t batch, std::int64_t tokens,
                  std::int64_t columns, cudaStream_t stream);

// out = in cos + rot(in) sin, rot turning pairs of channels (a, b) to (-b, a); in may be out. Stored as `dtype`.
void rope(const void* in, const float* cos, const float* sin, void* out, DType dtype, std::int64_t batch,
          std::int64_t tokens, std::int64_t columns, cudaStream_t stream);

// out[r, i] = in[r, i] gamma[i]; in may be out.
void scale(const void* in, const float* gamma, void* out, DType dtype, std::int64_t rows, std::int64_t columns,
           cudaStream_t stream);

// out (batch, columns) = the mean of tokens `first` and `second` of in (batch, tokens, columns).
void select_tokens(const void* in, std::int64_t first, std::int64_t second, void* out, DType dtype, std::int64_t batch,
                   std::int64_t tokens, std::int64_t columns, cudaStream_t stream);

// out (batch, columns) = the mean or the maximum over tokens of in (batch, tokens, columns).
void pool(const void* in, bool maximum, void* out, DType dtype, std::int64_t batch, std::int64_t tokens,
          std::int64_t columns, cudaStream_t stream);

// out = factor (forward + backward) SiLU(z), rows of `columns`; backward may be null. z's rows are z_stride elements
// apart.
void gated_merge(const void* forward, const void* backward, const void* z, std::int64_t z_stride, float factor,
                 void* out, DType dtype, std::int64_t rows, std::int64_t columns, cudaStream_t stream);

}  // namespace vimrt::cuda
