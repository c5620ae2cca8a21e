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

// Calls function(row, column, columns, value) for all elements of a matrix, each times gamma of its row.
template <typename F>
void for_each_element(const Weight& weight, const Weight* gamma, const F& function) {
    const std::int64_t rows = weight.shape[0];
    const std::int64_t columns = weight.shape.elements() / rows;
    for (std::int64_t row = 0; row < rows; ++row) {
        const float factor = gamma != nullptr ? cpu::weight_element(*gamma, row) : 1.0F;
        for (std::int64_t column = 0; column < columns; ++column)
            function(row, column, columns, cpu::weight_element(weight, row * columns + column) * factor);
    }
}

float rounded(float value, DType dtype) {
    float result = 0;
    with_storage(dtype, [&](auto type) { result = to_float(from_float<decltype(type)>(value)); });
    return result;
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
    const auto fill = [&](void* out) {
        for_each_element(weight, gamma, [&](std::int64_t row, std::int64_t column, std::int64_t columns, float value) {
            store_element(out, row * columns + column, value, dtype);
        });
    };
    return engine_constant(lowering, key_of("matrix", weight, gamma),
                           static_cast<std::size_t>(weight.shape.elements()) * size_of(dtype), fill);
}

const void* matrix_in_parts(Lowering& lowering, const Weight& weight, DType dtype, const Weight* gamma) {
    const auto fill = [&](void* out) {
        for_each_element(weight, gamma, [&](std::int64_t row, std::int64_t column, std::int64_t columns, float value) {
            const float high = rounded(value, dtype);
            const std::int64_t at = row * 3 * columns + column;
            store_element(out, at, high, dtype);
            store_element(out, at + columns, high, dtype);
            store_element(out, at + 2 * columns, value - high, dtype);
        });
    };
    return engine_constant(lowering, key_of("parts", weight, gamma),
                           static_cast<std::size_t>(3 * weight.shape.elements()) * size_of(dtype), fill);
}

}  // namespace vimrt::cuda
