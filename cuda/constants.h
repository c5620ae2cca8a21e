// Weights of the file as the kernels want them, uploaded once per engine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "lowering.h"

namespace vimrt::cuda {

// A constant of the engine that `fill(out)` writes on the host the first time that `key` is asked for.
template <typename F>
const void* engine_constant(Lowering& lowering, const std::string& key, std::size_t bytes, const F& fill) {
    const auto call = [](void* out, const void* context) { (*static_cast<const F*>(context))(out); };
    return lowering.engine_constant(key.c_str(), bytes, call, &fill);
}

// out[i] = value, converted to `dtype`, in host memory.
void store_element(void* out, std::int64_t i, float value, DType dtype);

// All elements in order as fp32, element i multiplied by gamma[i] where `gamma` is given.
const float* float_vector(Lowering& lowering, const Weight& weight, const Weight* gamma = nullptr);

// The weight as a row-major matrix (F, everything else) of `dtype`, row f multiplied by gamma[f] where `gamma` is
// given.
const void* matrix(Lowering& lowering, const Weight& weight, DType dtype, const Weight* gamma = nullptr);

// The same as the right side of a product with in_parts() (parts.cu): rows three times as long, of all elements
// rounded, the same again, and what rounding left of them.
const void* matrix_in_parts(Lowering& lowering, const Weight& weight, DType dtype, const Weight* gamma = nullptr);

}  // namespace vimrt::cuda
