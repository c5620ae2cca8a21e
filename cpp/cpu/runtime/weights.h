// Weights of the file as the kernels want them: fp32, padded, packed. Each is made once per engine and kept.
//
// Compiled for the baseline instruction set, so that the kernels' own files need nothing of the standard library.
#pragma once

#include <cstdint>

#include "graph.h"
#include "lowering.h"

namespace vimrt::cpu {

// Element i of `weight`, in row-major order, as fp32.
float weight_element(const Weight& weight, std::int64_t i);

// The matrix B of out = A B, K rows by `columns`, cut into panels of 3 registers' width. A panel holds its K rows one
// after the other, `width` floats each; only the last panel may be narrower, one or two registers wide, and is padded
// with zeros to whole registers. Aligned to 64 bytes.
struct PackedMatrix {
    const float* panels = nullptr;
    std::int64_t depth = 0;    // K
    std::int64_t columns = 0;  // of B
};

// out = in W^T: the weight (F, K) as the K x F matrix B. Row f is multiplied by gamma[f] where `gamma` is given.
PackedMatrix packed_linear(Lowering& lowering, const Weight& weight, int lanes, const Weight* gamma = nullptr);

// As packed_linear, with zero columns added up to a multiple of `lanes`.
PackedMatrix packed_linear_padded(Lowering& lowering, const Weight& weight, int lanes);

// The patch embedding's weight (D, C, P, Q) as a (C P Q) x D matrix; with `channels_last` its rows are ordered (P, Q,
// C), as the bytes of an NHWC image are.
PackedMatrix packed_patches(Lowering& lowering, const Weight& weight, int lanes, bool channels_last);

// All elements in order, as fp32, with zeros up to a multiple of `lanes`. Element f is
// multiplied by gamma[f] where `gamma` is given.
const float* float_vector(Lowering& lowering, const Weight& weight, int lanes, const Weight* gamma = nullptr);

// The convolution's weight (E, 1, W) as W rows of E, each padded with zeros to a multiple of `lanes`.
const float* conv_taps(Lowering& lowering, const Weight& weight, int lanes);

// -exp(A_log) log2(e) from A_log (E, N), so that 2^(delta A) is the decay: for each block of `lanes` channels N rows
// of `lanes` floats, zero beyond E.
const float* decay_rates(Lowering& lowering, const Weight& a_log, int lanes);

}  // namespace vimrt::cpu
