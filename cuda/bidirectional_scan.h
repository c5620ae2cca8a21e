// The selective scan of both directions, with the time step's projection and softplus before it and the gated merge
// behind.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "device.h"
#include "vimrt/tensor.h"

namespace vimrt::cuda {

// h_t = exp(Delta_t A) h_{t-1} + (Delta_t c_t) B_t, y_t = C_t . h_t + D c_t, h = 0 before the first token, with
// Delta_t = softplus(dt_weight delta_t + dt_bias). The backward direction walks its tokens from the last to the first;
// its rows are in the order of the tokens all the same.
struct ScanDirection {
    const void* c = nullptr;          // (batch, tokens, channels)
    const void* projected = nullptr;  // (batch, tokens, rank + 2 states): delta, B and C of each token
    const void* dt_weight = nullptr;  // (channels, rank)
    const float* dt_bias = nullptr;   // (channels)
    const float* decay = nullptr;     // (channels, states): A log2(e), A = -exp(A_log)
    const float* skip = nullptr;      // (channels): D
    void* y = nullptr;                // (batch, tokens, channels); may be c
};

// With `merged`, the result is factor (y_forward + y_backward) SiLU(z) there, and the directions' y are room to work
// in; `merged` may be the forward y. Without it the directions' y are the result.
struct Scan {
    ScanDirection forward, backward;
    int directions = 2;  // 1: forward alone
    void* merged = nullptr;
    const void* z = nullptr;  // (batch, tokens, channels), rows z_stride elements apart
    std::int64_t z_stride = 0;
    float factor = 1.0F;
    int batch = 0, tokens = 0, channels = 0;
    int states = 0;               // 8, 16, 32 or 64: fewer are padded with states whose B is zero
    int rank = 0;                 // a multiple of 16, padded with zeros
    DType dtype = DType::F32;     // of c, projected, dt_weight, z, y and merged
    unsigned* tickets = nullptr;  // ticket_count() zeros
};

// How a scan is spread over the chip.
struct ScanForm {
    int time_lanes = 0;  // lanes of a warp along time: 1, 8 or 16; 0: a thread for each channel, any shape
    int warps = 0;       // of a block, that scan
    int feeders = 0;     // of a block, that prepare time steps and merge results

    int channels_per_block() const { return warps * (32 / time_lanes) * 2; }
    friend bool operator==(const ScanForm&, const ScanForm&) = default;
};

// The form that serves the shape best on the device. All forms compute the same; which is faster was measured
// (docs/performance.md).
ScanForm choose_scan_form(const Scan& a, const DeviceProperties& device);
// Every form that can compute the shape on the device.
std::vector<ScanForm> scan_forms(const Scan& a, const DeviceProperties& device);

// Words of Scan::tickets that the form needs.
int ticket_count(const Scan& a, const ScanForm& form);

void bidirectional_scan(const Scan& a, const ScanForm& form, cudaStream_t stream);

// scan_over_channels.cu: a thread for each channel and direction, token after token; any shape.
void scan_over_channels(const Scan& a, cudaStream_t stream);
// scan_wavefront.cu: states pass from lane to lane; channels in multiples of 16.
bool scan_wavefront_takes(const Scan& a, const ScanForm& form);
void scan_wavefront(const Scan& a, const ScanForm& form, cudaStream_t stream);
std::size_t scan_wavefront_shared_bytes(const Scan& a, const ScanForm& form);

}  // namespace vimrt::cuda
