// What lies in front of a scan, in one kernel: the norm, in_proj, and convolution and x_proj of both directions.
// Neither the norm's result nor x is ever stored. For many tokens, where memory is what it waits for; and where the
// blocks of a cluster share out a run's channels, for few.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <span>

#include "conv_x_proj.h"
#include "device.h"
#include "out_proj.h"

namespace vimrt::cuda {

// Sizes are those of Vim's blocks: rows of `width` columns in the residual, of twice as many in x, z and c.
struct BeforeScan {
    OutProj out;
    bool adds = false;                   // out_proj's results; else the residual is what is normalised
    const float* norm_weight = nullptr;  // (width), of the RMSNorm of the sum
    float eps = 0;
    const void* in_weight = nullptr;  // (4 width, width), in the order of before_scan_in_element()
    void* z = nullptr;                // (batch, tokens, 2 width)
    // Its weight is in the order of before_scan_x_proj_element(); x, taps and biases, and run are not used.
    ConvXProj behind;
    const float* filters = nullptr;  // (2 width, before_scan_filter_floats), places by before_scan_filter_place()
    int width = 0;
    unsigned* zeros = nullptr;  // to be written for the scan: zeros_count of them
    int zeros_count = 0;
    bool lets_begin_first = false;  // the scan may be set up once all blocks have begun; else not before they end
    TokenRun run;                   // one of before_scan_runs(): see before_scan_run()
};

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

// Of a channel's part of BeforeScan::filters, which place has a direction's tap, or as the fifth its bias. They are
// halved, as the kernel's SiLU wants its argument; two more numbers, for 16 bytes, are not read.
constexpr int before_scan_filter_floats = 12;
constexpr int before_scan_filter_place(int direction, int tap) {
    return tap < 4 ? direction * 4 + tap : 8 + direction;
}

// What the kernel was made for: RMSNorm and 16-bit storage, widths of 192, 384 and 768, compute capability 9.0.
bool before_scan_takes(const BeforeScan& a, const DeviceProperties& device);
// Its runs for one of these widths; those that add out_proj's results are other ones, and there may be none.
std::span<const TimedRun> before_scan_runs(int width, bool adds);
// Which runs serve a shape best; of no octets where a kernel for each step is faster, or for out_proj and what is
// behind it. `alone`: nothing else runs beside the kernel.
TokenRun before_scan_run(const BeforeScan& a, const DeviceProperties& device, bool alone);
void before_scan(const BeforeScan& a, cudaStream_t stream);

}  // namespace vimrt::cuda
