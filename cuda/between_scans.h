// What lies between the scans of two blocks, in one kernel: out_proj, the residual's addition, the norm, in_proj, and
// convolution and x_proj of both directions. For runs of few tokens, where each kernel takes longer to begin than to
// compute.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <span>

#include "conv_x_proj.h"
#include "device.h"
#include "out_proj.h"

namespace vimrt::cuda {

// Sizes are those of Vim's blocks: rows of `width` columns in the residual, of twice as many in y, x, z and c.
struct BetweenScans {
    OutProj out;                         // without y in front of the first block
    const float* norm_weight = nullptr;  // (width), of the RMSNorm of the sum
    float eps = 0;
    const void* in_weight = nullptr;  // (4 width, width): rows of x, then of z
    void* z = nullptr;                // (batch, tokens, 2 width)
    ConvXProj behind;                 // of x; its own x and run are not used
    int width = 0;
    TokenRun run;          // one of between_scans_runs()
    int shared_bytes = 0;  // of a block: between_scans_shared_bytes()
};

// The shapes that the kernel was made for, on a device with clusters, and the runs that it has for them, fastest first.
// Of these, the one for which it is faster than other kernels: where all blocks have a multiprocessor of their own; or
// one of no octets.
bool between_scans_takes(const BetweenScans& a, const DeviceProperties& device);
std::span<const TokenRun> between_scans_runs(int width);
TokenRun between_scans_run(const BetweenScans& a, const DeviceProperties& device);
// What the kernel needs, or more, such that no two blocks share a multiprocessor where there is one for each: those
// that are set up early would crowd on the first ones that come free.
int between_scans_shared_bytes(const BetweenScans& a, const DeviceProperties& device);
void between_scans(const BetweenScans& a, cudaStream_t stream);

}  // namespace vimrt::cuda
