// What all forms of the scan have in common: both directions walk at the same time. Until it is half-way, each stores
// its y as it is; from there on it finds the other's y of every token it comes to, adds its own and writes the merged
// result, so that each token is merged once, and by a fixed partner.
#pragma once

#include <type_traits>

#include "activations.h"
#include "bidirectional_scan.h"
#include "storage.h"

namespace vimrt::cuda {

// Of an image's `parts`, of `tokens` tokens each, those that a direction walks before it comes to the one with the
// token that alone is wanted.
__device__ inline int parts_before(const Scan& a, int parts, int tokens, bool forward) {
    return forward ? a.wanted / tokens : parts - 1 - a.wanted / tokens;
}
// How many it walks without merging, and altogether. Where one token alone is wanted (`One`: that may be so), both
// directions walk as far as that, and the backward one merges there.
template <bool One = true>
__device__ int plain_parts(const Scan& a, int parts, int tokens, bool forward) {
    if (a.directions == 1) return 0;
    if (One && a.wanted >= 0) return parts_before(a, parts, tokens, forward) + (forward ? 1 : 0);
    return (parts + (forward ? 1 : 0)) / 2;
}
template <bool One = true>
__device__ int walked_parts(const Scan& a, int parts, int tokens, bool forward) {
    return One && a.wanted >= 0 ? parts_before(a, parts, tokens, forward) + 1 : parts;
}

template <typename T>
inline constexpr bool exact_math = std::is_same_v<T, float>;

__device__ inline const ScanDirection& direction_of(const Scan& a, int direction) {
    return direction == 0 ? a.forward : a.backward;
}

// One, two or four neighbours in registers, as they are stored.
template <typename T, int V>
class Few {
    static constexpr int bytes = V * static_cast<int>(sizeof(T));
    using Stored =
        std::conditional_t<bytes == 2, unsigned short,
                           std::conditional_t<bytes == 4, unsigned, std::conditional_t<bytes == 8, uint2, uint4>>>;

public:
    __device__ static Few at(const char* from) { return {*reinterpret_cast<const Stored*>(from)}; }
    __device__ static Few of(const float (&x)[V]) {
        Few few;
        if constexpr (sizeof(T) == 2 && V > 1) {
#pragma unroll
            for (int i = 0; i < V; i += 2) few.word(i / 2) = pack_two<T>(x[i], x[i + 1]);
        } else {
#pragma unroll
            for (int i = 0; i < V; ++i) reinterpret_cast<T*>(&few.stored_)[i] = from_float<T>(x[i]);
        }
        return few;
    }
    __device__ void put(char* to) const {
        *reinterpret_cast<Stored*>(to) = stored_;
    }
    __device__ void to_floats(float (&x)[V]) const {
        if constexpr (sizeof(T) == 2 && V > 1) {
#pragma unroll
            for (int i = 0; i < V; i += 2) {
                const float2 two = unpack_two<T>(word(i / 2));
                x[i] = two.x, x[i + 1] = two.y;
            }
        } else {
#pragma unroll
            for (int i = 0; i < V; ++i) x[i] = to_float(reinterpret_cast<const T*>(&stored_)[i]);
        }
    }
    __device__ unsigned& word(int i) {
        return reinterpret_cast<unsigned*>(&stored_)[i];
    }
    __device__ unsigned word(int i) const {
        return reinterpret_cast<const unsigned*>(&stored_)[i];
    }

    Stored stored_{};
};

// A pointer to global memory that the compiler does not take apart again into what it has in common with others.
__device__ inline char* keep_pointer(const void* pointer) {
    auto at = __cvta_generic_to_global(pointer);
    asm("" : "+l"(at));
    return static_cast<char*>(__cvta_global_to_generic(at));
}

}  // namespace vimrt::cuda
