// Which tokens of an image stand for it.
#pragma once

#include "kernels/partition.h"
#include "kernels/simd.h"
#include "lowering.h"

namespace vimrt::cpu::VIMRT_ISA {

// Two tokens whose mean is taken; the same one twice selects it.
struct SelectedTokens {
    std::int64_t first = 0;
    std::int64_t second = 0;
};

// By the `position` of a select_tokens node (select_tokens.cpp).
SelectedTokens selected_tokens(const Node& select, std::int64_t tokens);

// (a + b) / 2, exactly a where both are the same row.
VIMRT_INLINE void average_rows(const float* a, const float* b, std::int64_t columns, float* out) {
    for (std::int64_t i = 0; i < columns; i += kLanes) {
        const Mask mask = first_lanes(columns - i);
        const Vec half = set1(0.5F);
        store(out + i, fma(load(a + i, mask), half, mul(load(b + i, mask), half)), mask);
    }
}

}  // namespace vimrt::cpu::VIMRT_ISA
