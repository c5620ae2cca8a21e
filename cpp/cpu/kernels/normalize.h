// RMSNorm and LayerNorm of rows.
#pragma once

#include "kernels/partition.h"
#include "kernels/simd.h"

namespace vimrt::cpu::VIMRT_ISA {

// RMS: x / sqrt(mean(x^2) + eps) * weight. Layer: (x - mean) / sqrt(mean((x - mean)^2) + eps) * weight. Either + bias.
struct Norm {
    bool centred = false;           // LayerNorm
    const float* weight = nullptr;  // padded to whole registers, as bias
    const float* bias = nullptr;    // or null
    float eps = 0;
};

VIMRT_INLINE float row_sum(const float* in, std::int64_t columns) {
    Vec sums = zero();
    for (std::int64_t i = 0; i < columns; i += kLanes) sums = add(sums, load(in + i, first_lanes(columns - i)));
    return sum(sums);
}

// Sum over i of (in[i] - mean)^2.
VIMRT_INLINE float row_square_sum(const float* in, std::int64_t columns, float mean) {
    Vec sums = zero();
    std::int64_t i = 0;
    for (; i + kLanes <= columns; i += kLanes) {
        const Vec x = sub(load(in + i), set1(mean));
        sums = fma(x, x, sums);
    }
    if (i < columns) {
        // Absent lanes count as the mean.
        const Mask mask = first_lanes(columns - i);
        Vec x = sub(load(in + i, mask), set1(mean));
        alignas(64) float tail[kLanes] = {};
        store(tail, x, mask);
        x = load(tail);
        sums = fma(x, x, sums);
    }
    return sum(sums);
}

// One row of `columns` floats; `out` may be `in`.
VIMRT_INLINE void normalize_row(const Norm& norm, std::int64_t columns, const float* in, float* out) {
    const auto count = static_cast<float>(columns);
    const float mean = norm.centred ? row_sum(in, columns) / count : 0.0F;
    const float variance = row_square_sum(in, columns, mean) / count;
    const float rstd = 1.0F / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(variance + norm.eps)));
    for (std::int64_t i = 0; i < columns; i += kLanes) {
        const Mask mask = first_lanes(columns - i);
        Vec x = mul(mul(sub(load(in + i, mask), set1(mean)), set1(rstd)), load(norm.weight + i));
        if (norm.bias != nullptr) x = add(x, load(norm.bias + i));
        store(out + i, x, mask);
    }
}

}  // namespace vimrt::cpu::VIMRT_ISA
