// c = SiLU(depthwise causal convolution of x + bias), forwards and on the reversed sequence, in one read of x.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "vimrt/tensor.h"

namespace vimrt::cuda {

// forward[t] = SiLU(bias + sum_j taps[j] x[t - (W - 1) + j]); backward[t] the same with x[t + (W - 1) - j] and its own
// taps. x is zero beyond the sequence's ends.
struct CausalConv {
    const void* x = nullptr;  // (batch, tokens, channels), rows x_stride elements apart, stored as `dtype`
    std::int64_t x_stride = 0;
    void* forward = nullptr;              // (batch, tokens, channels), dense
    void* backward = nullptr;             // may be null
    const float* forward_taps = nullptr;  // (W, channels)
    const float* forward_bias = nullptr;  // (channels)
    const float* backward_taps = nullptr;
    const float* backward_bias = nullptr;
    int batch = 0, tokens = 0, channels = 0, width = 0;
    DType dtype = DType::F32;
};

void causal_conv1d(const CausalConv& a, cudaStream_t stream);

}  // namespace vimrt::cuda
