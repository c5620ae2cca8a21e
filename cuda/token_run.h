// Runs of an image's tokens, as the kernels around scans take them, and which of a kernel's instances takes one.
#pragma once

#include <cstddef>
#include <iterator>
#include <stdexcept>
#include <utility>

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

// Calls function.operator()<Octets, Blocks, Z>() with those of `run`, which is one of the array `Runs`.
template <const auto& Runs, typename F>
void with_run(const TokenRun& run, const F& function) {
    const auto call_if = [&]<std::size_t I>() {
        constexpr TokenRun one = Runs[I];
        if (one != run) return false;
        function.template operator()<one.octets, one.blocks, one.z>();
        return true;
    };
    const auto call_one = [&]<std::size_t... I>(std::index_sequence<I...>) {
        return (call_if.template operator()<I>() || ...);
    };
    if (!call_one(std::make_index_sequence<std::size(Runs)>())) throw std::logic_error("no kernel takes such runs");
}

}  // namespace vimrt::cuda
