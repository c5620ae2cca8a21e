// What lies in front of a scan, in one kernel: the norm, in_proj, and convolution and x_proj of both directions. For
// many tokens, where memory is what it waits for: neither the norm's result nor x is ever stored.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "conv_x_proj.h"
#include "device.h"

namespace vimrt::cuda {

// Sizes are those of Vim's blocks: rows of `width` columns in the residual, of twice as many in x, z and c.
struct BeforeScan {
    const float* residual = nullptr;     // (batch, tokens, width)
    const float* norm_weight = nullptr;  // (width), of the RMSNorm
    float eps = 0;
    const void* in_weight = nullptr;  // (4 width, width), in the order of before_scan_in_element()
    void* z = nullptr;                // (batch, tokens, 2 width)
    ConvXProj behind;                 // weight: in the order of before_scan_x_proj_element(); x and split are not used
    int width = 0;
    unsigned* zeros = nullptr;  // to be written for the scan: zeros_count of them
    int zeros_count = 0;
    int octets = 0;  // of a block's run of tokens, one of before_scan_runs: see before_scan_octets()
};

inline constexpr int before_scan_runs[] = {3, 4, 5, 6, 9, 12, 13};

// An element of a matrix.
struct MatrixElement {
    std::int64_t row, column;
};
// Which element of in_proj's weight, rows of x and then of z, is the `i`th of BeforeScan::in_weight; and of x_proj's,
// features by channels of one direction after the other, of ConvXProj::weight there.
MatrixElement before_scan_in_element(int width, std::int64_t i);
struct DirectedElement {
    int direction;
    MatrixElement element;
};
DirectedElement before_scan_x_proj_element(int features, std::int64_t i);

// What the kernel was made for: RMSNorm and 16-bit storage, widths of 192 and 384, compute capability 9.0.
bool before_scan_takes(const BeforeScan& a, const DeviceProperties& device);
// Which runs serve a shape best; 0 where a kernel for each step is faster. `alone`: nothing else runs beside the
// kernel.
int before_scan_octets(const BeforeScan& a, const DeviceProperties& device, bool alone);
void before_scan(const BeforeScan& a, cudaStream_t stream);

}  // namespace vimrt::cuda
