// The gate that ends a mixer: (y_forward + y_backward) * share * SiLU(z).
#pragma once

#include "kernels/partition.h"
#include "kernels/vector_math.h"

namespace vimrt::cpu::VIMRT_ISA {

// One row of `columns` floats. `other` may be null: one direction alone. `out` may be any of the inputs.
VIMRT_INLINE void gate_row(const float* y, const float* other, const float* z, float share, std::int64_t columns,
                           float* out) {
    for (std::int64_t i = 0; i < columns; i += kLanes) {
        const Mask mask = first_lanes(columns - i);
        Vec value = load(y + i, mask);
        if (other != nullptr) value = mul(add(value, load(other + i, mask)), set1(share));
        store(out + i, mul(value, silu(load(z + i, mask))), mask);
    }
}

}  // namespace vimrt::cpu::VIMRT_ISA
