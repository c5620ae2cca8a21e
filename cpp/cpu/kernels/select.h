// The mean of two tokens that stand for an image.
#pragma once

#include "kernels/partition.h"
#include "kernels/simd.h"

namespace vimrt::cpu::VIMRT_ISA {

// (a + b) / 2, exactly a where both are the same row.
VIMRT_INLINE void average_rows(const float* a, const float* b, std::int64_t columns, float* out) {
    for (std::int64_t i = 0; i < columns; i += kLanes) {
        const Mask mask = first_lanes(columns - i);
        const Vec half = set1(0.5F);
        store(out + i, fma(load(a + i, mask), half, mul(load(b + i, mask), half)), mask);
    }
}

}  // namespace vimrt::cpu::VIMRT_ISA
