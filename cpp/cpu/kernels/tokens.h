// Where class tokens stand among the patches of an image.
#pragma once

#include "kernels/simd.h"
#include "lowering.h"

namespace vimrt::cpu::VIMRT_ISA {

// At most two tokens of `width` floats, at ascending rows of the sequence; the patches fill the other rows in order.
struct TokenPlaces {
    int count = 0;
    std::int64_t rows[2] = {0, 0};
    const float* tokens[2] = {nullptr, nullptr};

    // The sequence row of patch `patch`.
    std::int64_t row_of(std::int64_t patch) const {
        for (int i = 0; i < count; ++i) patch += rows[i] <= patch ? 1 : 0;
        return patch;
    }
};

// Of an insert_tokens node behind `patches` patches (insert_tokens.cpp).
TokenPlaces token_places(Lowering& lowering, const Node& insert, std::int64_t patches);

}  // namespace vimrt::cpu::VIMRT_ISA
