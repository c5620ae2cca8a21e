// Inputs, outputs and packed weights of kernel tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <vector>

#include "runtime/weights.h"

namespace vimrt::cpu {

inline std::mt19937& generator() {
    static std::mt19937 instance(std::random_device{}());
    return instance;
}

inline std::vector<float> random_values(std::int64_t count, float low = -1, float high = 1) {
    std::uniform_real_distribution<float> values(low, high);
    std::vector<float> result(static_cast<std::size_t>(count));
    for (float& value : result) value = values(generator());
    return result;
}

// What a kernel must overwrite, or leave alone: NaN.
inline std::vector<float> poisoned(std::int64_t count) {
    return std::vector<float>(static_cast<std::size_t>(count), std::numeric_limits<float>::quiet_NaN());
}

// `values` followed by zeros up to a multiple of `lanes`, as weights are kept.
inline std::vector<float> padded(std::vector<float> values, int lanes) {
    values.resize((values.size() + static_cast<std::size_t>(lanes) - 1) / static_cast<std::size_t>(lanes) *
                  static_cast<std::size_t>(lanes));
    return values;
}

// A matrix (depth, columns) and its panels, as docs/cpu-kernels.md describes them.
struct PackedTestMatrix {
    PackedTestMatrix(std::vector<float> plain, std::int64_t depth, std::int64_t columns, int lanes)
        : values(std::move(plain)) {
        const std::int64_t panel = 3 * lanes;
        for (std::int64_t first = 0; first < columns; first += panel) {
            const std::int64_t width = std::min(panel, (columns - first + lanes - 1) / lanes * lanes);
            for (std::int64_t k = 0; k < depth; ++k) {
                for (std::int64_t n = first; n < first + width; ++n) {
                    panels.push_back(n < columns ? values[static_cast<std::size_t>(k * columns + n)] : 0.0F);
                }
            }
        }
        packed = {panels.data(), depth, columns};
    }
    PackedTestMatrix(const PackedTestMatrix&) = delete;
    PackedTestMatrix& operator=(const PackedTestMatrix&) = delete;

    double at(std::int64_t k, std::int64_t n) const { return values[static_cast<std::size_t>(k * packed.columns + n)]; }

    std::vector<float> values, panels;
    PackedMatrix packed;
};

}  // namespace vimrt::cpu
