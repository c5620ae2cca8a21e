// The causal convolution of both directions and the projection of its results to delta, B and C, in one read of x.
#pragma once

#include <cstdint>

#include "bidirectional_scan.h"
#include "causal_conv1d.h"
#include "token_run.h"

namespace vimrt::cuda {

struct ConvXProj {
    CausalConv conv;               // both directions, 4 taps, 16-bit storage; c in ScanOrder::Octets
    const void* weight = nullptr;  // (directions, features, channels), channels in the order of conv_x_proj_channel()
    void* projected = nullptr;     // (directions, batch, tokens, features)
    int features = 0;              // rank and twice the states, as x_proj gives them
    TokenRun run;                  // whose blocks share its channels: see conv_x_proj_run()
};

// How many runs all images' tokens make.
inline std::int64_t runs_of(const ConvXProj& a, const TokenRun& run) {
    const std::int64_t tokens = std::int64_t{run.octets} * octet_tokens;
    return (a.conv.tokens + tokens - 1) / tokens * a.conv.batch;
}

// Which channel the weight's column `column` is for: of every 16, those that a lane of the scan has beside each other
// come first, then those that it has beside them (channel_of_row() of scan_octet.cuh).
inline std::int64_t conv_x_proj_channel(std::int64_t column) {
    const std::int64_t row = column % 16;
    return column - row + row % 8 / 2 * 4 + row % 2 + row / 8 * 2;
}

// Where, in bytes of a row of c in that order, the 16-bit values of channels 2 pair and 2 pair + 1 lie.
constexpr int conv_x_proj_place(int pair) {
    return pair / 8 * 32 + pair % 2 * 16 + pair % 8 / 2 * 4;
}

// What the kernel was made for: the published models' shapes. Others take the two steps one after the other. That there
// are both directions, each with filters and a projection of its own, is for the caller to know.
bool conv_x_proj_takes(const ConvXProj& a);
// Which runs serve a shape best: of 4 octets, or with 80 features of 8. `alone`: nothing else runs beside the kernel.
TokenRun conv_x_proj_run(const ConvXProj& a, const DeviceProperties& device, bool alone);
void conv_x_proj(const ConvXProj& a, cudaStream_t stream);

}  // namespace vimrt::cuda
