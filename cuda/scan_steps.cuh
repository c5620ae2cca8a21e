// What both forms of the scan have in common: how the directions walk and where they meet.
//
// Both directions walk at the same time. Until it is half-way, each stores its y as it is; from there on it finds the
// other's y of every token it comes to, adds its own and writes the merged result, so that each token is merged once,
// and by a fixed partner.
#pragma once

#include <type_traits>

#include "activations.h"
#include "bidirectional_scan.h"
#include "storage.h"

namespace vimrt::cuda {

template <typename T>
inline constexpr bool exact_math = std::is_same_v<T, float>;

__device__ inline const ScanDirection& direction_of(const Scan& a, int direction) {
    return direction == 0 ? a.forward : a.backward;
}

// The token of a direction's step.
__device__ inline int token_at(const Scan& a, int direction, int step) {
    return direction == 0 ? step : a.tokens - 1 - step;
}

// Steps of a direction's walk whose y is stored as it is: all of them where nothing is merged here.
__device__ inline int plain_steps(const Scan& a, int direction) {
    if (a.merged == nullptr) return a.tokens;
    if (a.directions == 1) return 0;
    const int half = (a.tokens + 1) / 2;
    return direction == 0 ? half : a.tokens - half;
}

}  // namespace vimrt::cuda
