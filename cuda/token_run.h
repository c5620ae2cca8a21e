// Runs of an image's tokens, as the kernels around scans take them.
#pragma once

namespace vimrt::cuda {

// Who computes z of a run: each block what belongs to its channels of x; a third of the blocks all of it; or blocks of
// another cluster, which do so for two runs.
enum class ZBy { All, Third, Others };

// So many octets, neighbours, and the blocks of a cluster that share what is to be done for them.
struct TokenRun {
    int octets = 0;
    int blocks = 1;
    ZBy z = ZBy::All;
    friend constexpr bool operator==(const TokenRun&, const TokenRun&) = default;
};

// What one takes, in microseconds.
struct TimedRun : TokenRun {
    double time = 0;
};

}  // namespace vimrt::cuda
