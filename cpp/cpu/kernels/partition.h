// How threads share work.
#pragma once

#include <cstdint>

#include "kernels/simd.h"

namespace vimrt::cpu::VIMRT_ISA {

struct Range {
    std::int64_t begin = 0;
    std::int64_t end = 0;

    std::int64_t size() const { return end - begin; }
};

// Part `i` of `count` things cut into `parts` contiguous parts that differ by one at most.
VIMRT_INLINE Range part_of(std::int64_t count, std::int64_t i, std::int64_t parts) {
    return {count * i / parts, count * (i + 1) / parts};
}

VIMRT_INLINE std::int64_t min_of(std::int64_t a, std::int64_t b) {
    return a < b ? a : b;
}
VIMRT_INLINE std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
    return (a + b - 1) / b;
}
VIMRT_INLINE std::int64_t round_up(std::int64_t a, std::int64_t b) {
    return ceil_div(a, b) * b;
}

}  // namespace vimrt::cpu::VIMRT_ISA
