// Calls of the CUDA runtime that a test or a bench cannot do without.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace vimrt::cuda::test {

inline void require(cudaError_t status) {
    if (status != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(status));
}

}  // namespace vimrt::cuda::test
