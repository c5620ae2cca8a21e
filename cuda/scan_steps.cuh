// What both forms of the scan do at a token.
#pragma once

#include "activations.h"
#include "bidirectional_scan.h"
#include "storage.h"

namespace vimrt::cuda {

// A direction's walk over a range of tokens.
struct Walk {
    int low = 0;  // first token of the range
    int count = 0;
    bool ascending = true;

    __device__ int token(int step) const { return ascending ? low + step : low + count - 1 - step; }
};

// Both directions walk at the same time, in two phases: in phase 0 the forward one has the first half of the tokens and
// the backward one the second; then they swap. A direction finds the other's y of every token of its second phase, adds
// its own and writes the result, so that each token is merged once and by a fixed partner.
__device__ inline Walk walk_of(const Scan& a, int direction, int phase) {
    const int half = a.directions == 2 ? (a.tokens + 1) / 2 : a.tokens;
    const bool first_half = direction == phase;
    return {first_half ? 0 : half, first_half ? half : a.tokens - half, direction == 0};
}

__device__ inline const ScanDirection& direction_of(const Scan& a, int direction) {
    return direction == 0 ? a.forward : a.backward;
}

// Copies 16 bytes from global to shared memory without passing through registers.
__device__ inline void copy_async(float* shared, const float* global) {
    const auto address = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(global) : "memory");
}
__device__ inline void commit_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most `Pending` of the groups committed last are still under way.
template <int Pending>
__device__ void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// Adds dt_weight delta to delta[] for Tokens tokens whose rows lie `row` floats apart in shared memory.
template <int Tokens>
__device__ void project_time_step(const float* rows, int row, int rank, const float* dt_weight, int channels,
                                  float (&delta)[Tokens]) {
    for (int r = 0; r < rank; r += 4) {
        float weight[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) weight[i] = __ldg(dt_weight + (r + i) * channels);
#pragma unroll
        for (int j = 0; j < Tokens; ++j) {
            const float4 low_rank = *reinterpret_cast<const float4*>(rows + j * row + r);
            delta[j] = fmaf(weight[0], low_rank.x, delta[j]);
            delta[j] = fmaf(weight[1], low_rank.y, delta[j]);
            delta[j] = fmaf(weight[2], low_rank.z, delta[j]);
            delta[j] = fmaf(weight[3], low_rank.w, delta[j]);
        }
    }
}

}  // namespace vimrt::cuda
