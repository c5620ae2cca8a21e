#include "constants.h"

#include "cpu/runtime/weights.h"
#include "storage.h"

namespace vimrt::cuda {

void store_element(void* out, std::int64_t i, float value, DType dtype) {
    with_storage(dtype, [&](auto type) {
        using T = decltype(type);
        static_cast<T*>(out)[i] = from_float<T>(value);
    });
}

namespace {

std::string key_of(const char* layout, const Weight& weight, const Weight* gamma) {
    std::string key = std::string(layout) + " of " + weight.name;
    if (gamma != nullptr) key += " * " + gamma->name;
    return key;
}

}  // namespace

const float* float_vector(Lowering& lowering, const Weight& weight, const Weight* gamma) {
    const std::int64_t count = weight.shape.elements();
    const auto fill = [&](void* out) {
        for (std::int64_t i = 0; i < count; ++i) {
            static_cast<float*>(out)[i] =
                cpu::weight_element(weight, i) * (gamma != nullptr ? cpu::weight_element(*gamma, i) : 1.0F);
        }
    };
    return static_cast<const float*>(engine_constant(lowering, key_of("vector", weight, gamma),
                                                     static_cast<std::size_t>(count) * sizeof(float), fill));
}

const void* matrix(Lowering& lowering, const Weight& weight, DType dtype, const Weight* gamma) {
    const std::int64_t rows = weight.shape[0];
    const std::int64_t columns = weight.shape.elements() / rows;
    const auto fill = [&](void* out) {
        for (std::int64_t f = 0; f < rows; ++f) {
            const float factor = gamma != nullptr ? cpu::weight_element(*gamma, f) : 1.0F;
            for (std::int64_t k = f * columns; k < (f + 1) * columns; ++k) {
                store_element(out, k, cpu::weight_element(weight, k) * factor, dtype);
            }
        }
    };
    return engine_constant(lowering, key_of("matrix", weight, gamma),
                           static_cast<std::size_t>(rows * columns) * size_of(dtype), fill);
}

}  // namespace vimrt::cuda
